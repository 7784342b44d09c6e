"""What a phase's times say beside the machine's peaks: rates, places under the roof, gaps."""

from __future__ import annotations

import math
from typing import Any

from octavo.benchmarks.profile import Result
from octavo.benchmarks.profile_steps import Found
from octavo.execution.model_runner import ModelRunner
from octavo.planner.operations import (
    OPERATIONS,
    Operation,
    StepTimes,
    mbu_ratio,
    mfu_ratio,
    position,
    split_step,
    total,
)
from octavo.planner.roofline import Work

# Of a product its matrix: where a decoder holds it, and so in which numbers it is multiplied.
_MATRICES: tuple[Operation, ...] = ("qkv", "output", "gate_up", "down")


def kinds_of(runner: ModelRunner) -> dict[Operation, str]:
    """The numbers that each operation multiplies."""
    computed = str(runner.dtype).removeprefix("torch.")
    kinds: dict[Operation, str] = dict.fromkeys(OPERATIONS, computed)
    for name in _MATRICES:
        kinds[name] = getattr(runner.model.layers[0], name).format.activation
    kinds["lm_head"] = runner.model.lm_head.format.activation
    return kinds


def phase_result(
    runner: ModelRunner,
    peaks: dict[str, Any],
    found: Found,
    *,
    steps: int,
) -> Result:
    """steps: of each that was recorded."""
    times, works, tokens = found.times, found.works, found.tokens
    kinds = kinds_of(runner)
    read: float = peaks["read_bytes_per_s"]
    rates = {name: float(peaks["flops_per_s"][kind]) for name, kind in kinds.items()}
    work = total(works.values())
    main_kind = kinds["gate_up"]
    whole = position(work, times.plain_s, read, peaks["flops_per_s"][main_kind])
    assert whole is not None
    return {
        "recorded": found.count,
        "steps": steps,
        "tokens": tokens,
        "context_tokens": found.context_tokens,
        "time_s": times.plain_s,
        "recorded_time_s": times.step_s,
        "least_time_s": found.least_plain_s,
        "least_recorded_time_s": found.least_recorded_s,
        "tokens_per_s": tokens / times.plain_s,
        "bytes": work.bytes,
        "flops": work.flops,
        "mbu_ratio": mbu_ratio(work, times.plain_s, read),
        "mfu_ratio": mfu_ratio(work, times.plain_s, peaks["flops_per_s"][main_kind]),
        "bound": whole.bound,
        "roof_ratio": whole.share_ratio,
        "matrix_kind": main_kind,
        "operations": [
            _operation(
                name, times, works[name], read, rates[name], kinds[name], runner.library is not None
            )
            for name in OPERATIONS
        ],
        "gaps_s": split_step(times, works, read, rates),
    }


def _operation(
    name: Operation,
    times: StepTimes,
    work: Work,
    read: float,
    rate: float,
    kind: str,
    tells_waiting: bool,
) -> Result:
    elapsed_s = times.operations[name]
    row: Result = {
        "operation": name,
        "time_s": elapsed_s,
        "waited_s": times.waited[name] if tells_waiting else None,
        "step_ratio": elapsed_s / times.step_s,
        "bytes": work.bytes,
        "flops": work.flops,
        "kind": kind,
    }
    place = position(work, elapsed_s, read, rate)
    if place is None or elapsed_s <= 0:
        return row
    row |= {
        "read_bytes_per_s": work.bytes / elapsed_s,
        "flops_per_s": work.flops / elapsed_s,
        "read_peak_ratio": work.bytes / elapsed_s / read,
        "matrix_peak_ratio": work.flops / elapsed_s / rate,
        "bound": place.bound,
        "floor_s": place.floor_s,
        "intensity_flops_per_byte": place.intensity if math.isfinite(place.intensity) else None,
        "roof_flops_per_s": place.roof_flops_per_s,
        "roof_ratio": place.share_ratio,
    }
    return row
