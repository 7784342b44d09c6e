"""`profile` on a GPU: its peaks, and what operations take there by torch's profiler.

In service a decode step is one CUDA graph, of which nobody tells where an operation ends. So times
of steps are those of service, and operations are recorded in further steps that launch them one by
one: the same kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from octavo import spans
from octavo.benchmarks.profile_steps import Found, Recorded, middle_half
from octavo.engine import Engine
from octavo.planner.operations import OPERATIONS, Network, StepTimes, step_operations
from octavo.planner.roofline import Work
from octavo.spans import Recorder

NOTES = (
    "what a CUDA graph's operations take: an operation's time is that of its kernels when they are "
    "launched one by one; steps are timed as in service",
    "what the host does beside the device: 'schedule' and 'hand out' overlap with kernels, and "
    "'rest' is the time of a step in which no kernel runs",
)
KINDS = ("float32", "bfloat16", "float16", "int8")
_READ_NUMBERS, _ROWS, _CALLS = 2**30, 8192, 20


def measure_device_peaks(device: torch.device) -> dict[str, Any]:
    """Summing up to 4 GiB, and products of large matrices in each format: medians of 20 calls."""
    free, _ = torch.cuda.mem_get_info(device)  # KV memory has most of it
    count = min(_READ_NUMBERS, free // 8)
    numbers = torch.zeros(count, dtype=torch.float32, device=device)
    read = numbers.nbytes / _device_s(numbers.sum)
    del numbers
    rates = {}
    for kind in KINDS:
        a, b = (torch.ones(_ROWS, _ROWS, device=device).to(getattr(torch, kind)) for _ in range(2))
        multiply: Callable[..., Any] = torch._int_mm if kind == "int8" else torch.mm
        rates[kind] = 2 * _ROWS**3 / _device_s(partial(multiply, a, b.t()))
    return {"read_bytes_per_s": read, "flops_per_s": rates}


def _device_s(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(_CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def plain_steps(engine: Engine, count: int) -> list[float]:
    """Seconds of each, as in service; the last waits for the device."""
    elapsed_s = []
    for _ in range(count):
        began_s = time.perf_counter()
        engine.step()
        elapsed_s.append(time.perf_counter() - began_s)
    torch.cuda.synchronize()
    return elapsed_s


@contextmanager
def without_graphs(engine: Engine) -> Iterator[None]:
    runner = engine.runner._on_gpu
    assert runner is not None
    graphs, runner._graphs = runner._graphs, {}
    try:
        yield
    finally:
        runner._graphs = graphs


def recorded_on_device(
    engine: Engine, network: Network, goes_on: Callable[[], bool]
) -> tuple[Recorded, int]:
    """Steps as long as `goes_on`: what their kernels took together, and how many there were. Times
    of the whole steps are not service's and left at 0."""
    into, count = Recorded(), 0
    recorder = Recorder(on_device=True)
    torch.cuda.synchronize()
    with (
        without_graphs(engine),
        profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen,
        spans.recording(recorder),
    ):
        while goes_on():
            recorder.step = spans.NO_STEP
            engine.step()
            if recorder.step is spans.NO_STEP:
                continue
            count += 1
            into.tokens += sum(rows.query_tokens for rows in recorder.step.rows)
            into.context_tokens += sum(rows.context_tokens for rows in recorder.step.rows)
            for name, work in step_operations(network, recorder.step.rows).items():
                before = into.works[name]
                into.works[name] = Work(before.bytes + work.bytes, before.flops + work.flops)
        torch.cuda.synchronize()
    by_name = {each.key: each for each in seen.key_averages()}
    for name in OPERATIONS:
        found = by_name.get(f"octavo {name}")
        # Of a range the kernels launched within it.
        into.operations[name] = 0.0 if found is None else found.device_time_total / 1e6
    into.forward_s = sum(into.operations.values())
    kernels_s = (
        sum(
            event.self_device_time_total
            for event in seen.key_averages()
            if event.device_type.name == "CUDA" and not event.key.startswith("octavo ")
        )
        / 1e6
    )
    into.parts["sample"] = max(kernels_s - into.forward_s, 0.0)
    return into, count


def device_times(recorded: Recorded, plain_s: list[float], count: int) -> Found:
    """Of one step, or one prefill: service's time, and the mean of what `count` recorded ones
    took. What is not a kernel's is left to 'rest'."""
    whole_s = statistics.fmean(middle_half(plain_s, float))
    times = StepTimes(
        step_s=whole_s,
        forward_s=recorded.forward_s / count,
        operations={name: each / count for name, each in recorded.operations.items()},
        waited=recorded.waited,
        parts={name: each / count for name, each in recorded.parts.items()},
        plain_s=whole_s,
    )
    return Found(
        times=times,
        works={
            name: Work(work.bytes / count, work.flops / count)
            for name, work in recorded.works.items()
        },
        tokens=recorded.tokens / count,
        context_tokens=recorded.context_tokens / count,
        count=count,
        least_plain_s=min(plain_s),
        least_recorded_s=whole_s,
    )
