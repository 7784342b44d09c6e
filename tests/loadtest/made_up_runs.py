"""Settings and records of runs that nobody ran."""

from __future__ import annotations

from typing import Any

from loadtest.records import Record, WorkerRecords
from loadtest.settings import RunSettings
from loadtest.workloads import WorkloadSettings

MS = 1_000_000


def settings(**changed: Any) -> RunSettings:
    workload = {"name": "chat", **changed.pop("workload", {})}
    values: dict[str, Any] = {
        "arrival": "poisson",
        "rate": 10.0,
        "burstiness": 1.0,
        "duration_s": 60.0,
        "max_in_flight": 256,
        "transport": "grpc",
        "host": "http://localhost:8000",
        "grpc_address": "localhost:8001",
        "model": "llm",
        "connections": 4,
        "request_timeout_s": 600.0,
        "drain_timeout_s": 30.0,
        "warmup_s": 0.0,
        "slo_ttft_s": 2.0,
        "slo_tpot_s": 0.1,
    }
    return RunSettings(workload=WorkloadSettings(**workload), **{**values, **changed})


def record(
    index: int = 0,
    *,
    intended_ms: float = 0,
    lag_ms: float = 0,
    ttft_ms: float = 100,
    gaps_ms: tuple[float, ...] = (10, 10),
    **changed: Any,
) -> Record:
    """One token an output."""
    sent_ns = round((intended_ms + lag_ms) * MS)
    output_ns = [sent_ns + round(ttft_ms * MS)]
    for gap in gaps_ms:
        output_ns.append(output_ns[-1] + round(gap * MS))
    values: dict[str, Any] = {
        "workload": "chat",
        "status": "ok",
        "intended_ns": round(intended_ms * MS),
        "sent_ns": sent_ns,
        "first_text_ns": output_ns[0],
        "output_ns": output_ns,
        "output_tokens": [1] * len(output_ns),
        "ended_ns": output_ns[-1] + MS,
        "input_tokens": 512,
        "max_tokens": len(output_ns),
        "finish_reason": "length",
    }
    return Record(index=index, **{**values, **changed})


def failed(status: str, index: int = 0) -> Record:
    sent = {} if status == "dropped" else {"sent_ns": 0, "ended_ns": 50 * MS}
    return Record(
        index=index,
        workload="chat",
        status=status,  # type: ignore[arg-type]
        intended_ns=0,
        max_tokens=9,
        **sent,
    )


def worker_records(
    records: list[Record], *, worker: int = 0, workers: int = 1, killed: bool = False, **run: Any
) -> WorkerRecords:
    header = {
        "worker": worker,
        "workers": workers,
        "settings": settings(**run).as_json(),
        "versions": {"python": "3.12"},
    }
    end = None if killed else {"cpu_ratio": 0.2, "ended_early": False}
    return WorkerRecords(header, records, end)
