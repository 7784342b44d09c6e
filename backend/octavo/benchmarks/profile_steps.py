"""Steps of an engine in turns: one as it is, one of which all parts are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar, get_args

from octavo import spans
from octavo.engine import Engine
from octavo.planner.operations import (
    OPERATIONS,
    Network,
    Operation,
    StepTimes,
    step_operations,
)
from octavo.planner.roofline import Work
from octavo.spans import Recorder

# Where the engine's ranges are counted; "forward" has what is in none of these.
_PART_OF = {
    "schedule": "schedule", "batch": "schedule", "update": "schedule", "count": "schedule",
    "sample": "sample", "wait": "sample", "hand out": "hand out",
}  # fmt: skip
_PARTS: tuple[Any, ...] = ("schedule", "sample", "hand out")
assert get_args(Operation) == OPERATIONS

_T = TypeVar("_T")


def _zeros() -> dict[Operation, float]:
    return dict.fromkeys(OPERATIONS, 0.0)


@dataclass(slots=True)
class Recorded:
    """What one step took, or several that belong together. works: of its operations."""

    step_s: float = 0.0
    forward_s: float = 0.0
    tokens: int = 0
    context_tokens: float = 0.0  # before each sequence's own, of all together
    operations: dict[Operation, float] = field(
        default_factory=lambda: dict.fromkeys(OPERATIONS, 0.0)
    )
    waited: dict[Operation, float] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, 0.0))
    parts: dict[Any, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    works: dict[Operation, Work] = field(
        default_factory=lambda: dict.fromkeys(OPERATIONS, Work(0, 0))
    )


class StepWatch:
    """Steps an engine on the CPU, and records what a step went into."""

    def __init__(self, engine: Engine, network: Network) -> None:
        self._engine, self._network = engine, network
        self._library = engine.runner.library
        self._num_threads = engine.runner.num_threads

    def plain_step(self) -> float:
        """Its seconds."""
        began_s = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - began_s

    def recorded_step(self, into: Recorded) -> None:
        recorder = Recorder()
        if self._library is not None:
            self._library.is_timed = True
        try:
            with spans.recording(recorder):
                elapsed_s = self.plain_step()
        finally:
            if self._library is not None:
                self._library.is_timed = False
        if recorder.step is spans.NO_STEP:
            return
        into.step_s += elapsed_s
        self._count(recorder, into)
        for name, work in step_operations(self._network, recorder.step.rows).items():
            before = into.works[name]
            into.works[name] = Work(before.bytes + work.bytes, before.flops + work.flops)
        into.tokens += sum(rows.query_tokens for rows in recorder.step.rows)
        into.context_tokens += sum(rows.context_tokens for rows in recorder.step.rows)

    def _count(self, recorder: Recorder, into: Recorded) -> None:
        ranges = [(each.name, each.begin_ns, each.end_ns) for each in recorder.ranges]
        if self._library is not None:
            phases = self._library.take_phases()
            assert phases is not None, "a step did not go through the kernels' forward"
            for operation in OPERATIONS:
                into.operations[operation] += phases.spent_ns[operation] / self._num_threads / 1e9
                into.waited[operation] += phases.waited_ns[operation] / self._num_threads / 1e9
        for name, begin_ns, end_ns in ranges:
            elapsed_s = (end_ns - begin_ns) / 1e9
            if name == spans.DESCRIBE:
                into.step_s -= elapsed_s
            elif name == "forward":
                into.forward_s += elapsed_s
            elif name in _PART_OF:
                into.parts[_PART_OF[name]] += elapsed_s
            elif name in into.operations:
                into.operations[name] += elapsed_s


def middle_half(values: Sequence[_T], key: Callable[[_T], float]) -> list[_T]:
    """Those without the quarter of the smallest and of the largest."""
    ranked = sorted(values, key=key)
    cut = len(ranked) // 4
    return ranked[cut : len(ranked) - cut]


@dataclass(frozen=True, slots=True)
class Found:
    """Of `count` recorded steps and of others: means of the middle halves by duration, and the
    shortest ones."""

    times: StepTimes
    works: Mapping[Operation, Work]
    tokens: float
    context_tokens: float
    count: int
    least_plain_s: float
    least_recorded_s: float


def mean_times(recorded: Sequence[Recorded], plain_s: Sequence[float]) -> Found:
    chosen = middle_half(recorded, lambda each: each.step_s)
    chosen_plain: list[float] = middle_half(plain_s, float)

    def mean(values: Sequence[Mapping[Any, float]]) -> dict[Any, float]:
        return {name: fmean(each[name] for each in values) for name in values[0]}

    times = StepTimes(
        step_s=fmean(each.step_s for each in chosen),
        forward_s=fmean(each.forward_s for each in chosen),
        operations=mean([each.operations for each in chosen]),
        waited=mean([each.waited for each in chosen]),
        parts=mean([each.parts for each in chosen]),
        plain_s=fmean(chosen_plain),
    )
    works = {
        name: Work(
            fmean(each.works[name].bytes for each in chosen),
            fmean(each.works[name].flops for each in chosen),
        )
        for name in OPERATIONS
    }
    return Found(
        times=times,
        works=works,
        tokens=fmean(each.tokens for each in chosen),
        context_tokens=fmean(each.context_tokens for each in chosen),
        count=len(recorded),
        least_plain_s=min(plain_s),
        least_recorded_s=min(each.step_s for each in recorded),
    )
