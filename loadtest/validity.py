"""Whether a run measured the server, or the load generator and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.records import WorkerRecords

_MAX_LAG_S = 0.005
_MAX_LAG_TTFT_RATIO = 0.05
_BUSY_CPU_RATIO = 0.9


@dataclass(frozen=True, slots=True)
class Validity:
    """`reasons` make a run invalid; `warnings` do not."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        return not self.reasons


def lag_limit_s(ttft_p50_s: float) -> float:
    """How large the schedule lag's p99 may be: small against what is measured."""
    return min(_MAX_LAG_S, _MAX_LAG_TTFT_RATIO * ttft_p50_s)


def judge(
    files: Sequence[WorkerRecords],
    *,
    is_open_loop: bool,
    counts: Mapping[str, int],
    ttft_p50_s: float | None,
    lag_p99_s: float | None,
) -> Validity:
    """A run is invalid if the generator could not keep to its schedule, left arrivals out, or if
    a process's records are missing: its numbers are then not those of the load it was to be."""
    reasons: list[str] = []
    warnings: list[str] = []
    expected = {file.header["workers"] for file in files}
    if expected != {len(files)}:
        reasons.append(f"records of {len(files)} of {max(expected)} processes")
    if not counts["ok"]:
        reasons.append("no request came to its end")
    if counts["dropped"]:
        reasons.append(
            f"{counts['dropped']} arrivals met --max-in-flight requests and were dropped"
        )
    if lag_p99_s is not None and ttft_p50_s is not None:
        limit_s = lag_limit_s(ttft_p50_s)
        if lag_p99_s > limit_s:
            reasons.append(
                f"schedule lag p99 is {lag_p99_s * 1e3:.2f} ms, above {limit_s * 1e3:.2f} ms, the "
                "lower of 5 ms and 5 % of the median TTFT"
            )
    if not is_open_loop:
        warnings.append(
            "closed loop: while the server is slow it gets fewer requests, so percentiles leave "
            "out those that would have been slow; for latency use an open loop (--arrival)"
        )
    short = sum(
        record.status == "ok" and sum(record.output_tokens) < record.max_tokens
        for file in files
        for record in file.records
    )
    if short:
        warnings.append(f"{short} answers were shorter than asked for: the load was lighter")
    for file in files:
        worker = file.header["worker"]
        if file.end is None:
            warnings.append(f"process {worker} was killed: requests in flight then are missing")
            continue
        if file.end["cpu_ratio"] > _BUSY_CPU_RATIO:
            share = f"{file.end['cpu_ratio']:.0%}"
            warnings.append(f"process {worker} used {share} of a core: use more --processes")
        if file.end["ended_early"]:
            warnings.append(f"process {worker} was stopped before the end of its schedule")
    return Validity(tuple(reasons), tuple(warnings))
