"""From the raw records of a run to its numbers. Pure; times come in as ns and go out as s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from loadtest.definitions import DEFINITION_VERSION, DEFINITIONS
from loadtest.records import Record, Status, WorkerRecords
from loadtest.settings import RunSettings
from loadtest.validity import Validity, judge

# How many values a percentile needs (AIPerf's best practices).
MIN_SAMPLES = {50: 200, 90: 500, 99: 1000}


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of values in seconds. `too_few` names the percentiles that stand on too few values."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float
    too_few: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """None without values."""
        if not len(values):
            return None
        p50, p90, p99 = (float(p) for p in np.percentile(values, list(MIN_SAMPLES)))
        return cls(
            count=len(values),
            mean=float(np.mean(values)),
            min=float(np.min(values)),
            p50=p50,
            p90=p90,
            p99=p99,
            max=float(np.max(values)),
            too_few=tuple(f"p{p}" for p, least in MIN_SAMPLES.items() if len(values) < least),
        )


@dataclass(frozen=True, slots=True)
class Goodput:
    """`ratio` and `requests_per_s` are None if no request could be evaluated."""

    slo_ttft_s: float
    slo_tpot_s: float
    good: int
    evaluated: int
    good_tokens: int
    ratio: float | None
    requests_per_s: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of a run, or of one of its workloads."""

    counts: dict[str, int]
    duration_s: float | None
    latencies: dict[str, Distribution | None]
    schedule_lag_s: Distribution | None
    requests_per_s: float | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    output_tokens_per_s: float | None
    tokens_per_output: float | None
    goodput: Goodput


@dataclass(frozen=True, slots=True)
class Run:
    """What the report shows."""

    definition_version: int
    definitions: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str]
    workers: int
    validity: Validity
    total: Summary
    by_workload: dict[str, Summary]


def ttft_s(record: Record) -> float | None:
    return _seconds(record.sent_ns, record.first_text_ns)


def e2e_s(record: Record) -> float | None:
    return _seconds(record.sent_ns, _last(record))


def tpot_s(record: Record) -> float | None:
    """None below two tokens."""
    num_tokens = sum(record.output_tokens)
    decode_s = _seconds(record.first_text_ns, _last(record))
    return decode_s / (num_tokens - 1) if decode_s is not None and num_tokens > 1 else None


def response_ttft_s(record: Record) -> float | None:
    return _seconds(record.intended_ns, record.first_text_ns)


def response_e2e_s(record: Record) -> float | None:
    return _seconds(record.intended_ns, _last(record))


def itl_s(record: Record) -> Iterable[float]:
    return [gap / 1e9 for gap in np.diff(record.output_ns)]


def lag_s(record: Record) -> float | None:
    return _seconds(record.intended_ns, record.sent_ns)


def goodput(
    records: Sequence[Record], *, slo_ttft_s: float, slo_tpot_s: float, duration_s: float | None
) -> Goodput:
    """See DEFINITIONS["goodput"]."""
    good = evaluated = good_tokens = 0
    for record in records:
        if record.status == "error":
            evaluated += 1
        if record.status != "ok":
            continue
        ttft, tpot = ttft_s(record), tpot_s(record)
        if ttft is None or tpot is None:
            continue
        evaluated += 1
        if ttft <= slo_ttft_s and tpot <= slo_tpot_s:
            good += 1
            good_tokens += sum(record.output_tokens)
    return Goodput(
        slo_ttft_s=slo_ttft_s,
        slo_tpot_s=slo_tpot_s,
        good=good,
        evaluated=evaluated,
        good_tokens=good_tokens,
        ratio=good / evaluated if evaluated else None,
        requests_per_s=good / duration_s if evaluated and duration_s else None,
    )


def counted(records: Iterable[Record], warmup_s: float) -> list[Record]:
    """Without those of the warm-up."""
    return [record for record in records if record.intended_ns >= warmup_s * 1e9]


def summarize(records: Sequence[Record], settings: RunSettings) -> Summary:
    """`records` are those that count."""
    ok = [record for record in records if record.status == "ok"]
    counts = Counter(record.status for record in records)
    duration_s = _duration_s(records, ok)
    per_request = {
        "TTFT": ttft_s,
        "TPOT": tpot_s,
        "e2e": e2e_s,
        "response TTFT": response_ttft_s,
        "response e2e": response_e2e_s,
    }
    latencies = {
        name: Distribution.of(_present(map(function, ok))) for name, function in per_request.items()
    }
    latencies["ITL"] = Distribution.of([gap for record in ok for gap in itl_s(record)])
    output_tokens = sum(sum(record.output_tokens) for record in ok)
    num_outputs = sum(len(record.output_tokens) for record in ok)
    cached = [r.cached_tokens for r in ok if r.cached_tokens is not None]
    return Summary(
        counts={status: counts[status] for status in get_args(Status)},
        duration_s=duration_s,
        latencies=latencies,
        schedule_lag_s=(
            Distribution.of(_present(map(lag_s, records))) if settings.is_open_loop else None
        ),
        requests_per_s=len(ok) / duration_s if duration_s else None,
        input_tokens=sum(record.input_tokens or 0 for record in ok),
        output_tokens=output_tokens,
        cached_tokens=sum(cached) if cached else None,
        output_tokens_per_s=output_tokens / duration_s if duration_s else None,
        tokens_per_output=output_tokens / num_outputs if num_outputs else None,
        goodput=goodput(
            records,
            slo_ttft_s=settings.slo_ttft_s,
            slo_tpot_s=settings.slo_tpot_s,
            duration_s=duration_s,
        ),
    )


def summarize_run(files: Sequence[WorkerRecords]) -> Run:
    """Of all the files of a run."""
    header = files[0].header
    settings = RunSettings.from_json(header["settings"])
    records = counted((r for file in files for r in file.records), settings.warmup_s)
    total = summarize(records, settings)
    workloads = sorted({record.workload for record in records})
    return Run(
        definition_version=DEFINITION_VERSION,
        definitions=DEFINITIONS,
        settings=header["settings"],
        versions=header["versions"],
        workers=header["workers"],
        validity=judge(
            files,
            is_open_loop=settings.is_open_loop,
            counts=total.counts,
            ttft_p50_s=total.latencies["TTFT"].p50 if total.latencies["TTFT"] else None,
            lag_p99_s=total.schedule_lag_s.p99 if total.schedule_lag_s else None,
        ),
        total=total,
        by_workload={
            name: summarize([r for r in records if r.workload == name], settings)
            for name in workloads
        },
    )


def _duration_s(records: Sequence[Record], ok: Sequence[Record]) -> float | None:
    sent = [record.sent_ns for record in records if record.sent_ns is not None]
    ends = [last for record in ok if (last := _last(record)) is not None]
    return (max(ends) - min(sent)) / 1e9 if ends else None


def _last(record: Record) -> int | None:
    return record.output_ns[-1] if record.output_ns else None


def _seconds(start_ns: int | None, end_ns: int | None) -> float | None:
    return (end_ns - start_ns) / 1e9 if start_ns is not None and end_ns is not None else None


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
