"""A file for Perfetto (ui.perfetto.dev) of some of an engine's steps: what torch's profiler sees,
and with it the engine's own ranges, of all threads, and the phases of the CPU kernels.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from octavo import spans
from octavo.kernels.cpu import Library
from octavo.planner.operations import Rows
from octavo.scheduling.sequence import StepPlan
from octavo.spans import Range, Recorder

log = logging.getLogger(__name__)

# In what torch's profiler writes: its times count from there, in µs.
_BASE = re.compile(rb'"baseTimeNanoseconds": (\d+)')
_EVENTS = b'"traceEvents": ['
_TAIL_BYTES = 4096


def warm_up(on_device: bool) -> None:
    """The first start of torch's profiler in a process takes a second; no request should wait for
    it."""
    with profile(activities=_activities(on_device)):
        torch.ones(1)


class StepTrace:
    """Records from `start` to `stop`, both called by the thread that steps, and then writes, on a
    thread of its own or the caller's."""

    def __init__(self, library: Library | None, on_device: bool) -> None:
        """library: the CPU kernels that compute, whose phases are told too."""
        self._library = library
        self._profile = profile(activities=_activities(on_device))
        self._recorder = Recorder(on_device)
        self._unix_offset_ns = 0

    def start(self) -> None:
        self._unix_offset_ns = time.time_ns() - time.perf_counter_ns()
        self._profile.start()
        self.start_ranges()

    def start_ranges(self) -> None:
        """Again, after `stop_ranges`."""
        if self._library is not None:
            self._library.is_timed = True
        spans.start(self._recorder)

    def step(self, number: int, advance: Callable[[], bool]) -> bool:
        """Runs a step, as a range that says what it computes."""
        self._recorder.step = spans.NO_STEP
        began_ns = time.perf_counter_ns()
        worked = advance()
        name = f"step {number}: {self._recorder.step.name}"
        self._recorder.add(name, began_ns, time.perf_counter_ns())
        phases = None if self._library is None else self._library.take_phases()
        if phases is not None:
            for phase in phases.ranges:
                self._recorder.add(*phase)
        return worked

    def stop_ranges(self) -> None:
        """What comes is not the trace's, and is seen by torch's profiler alone."""
        spans.stop()
        if self._library is not None:
            self._library.is_timed = False

    def stop(self) -> None:
        self.stop_ranges()
        self._profile.stop()

    def write(self, file: Path) -> None:
        """Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        torchs = file.with_name(f"{file.name}.torch")
        try:
            self._profile.export_chrome_trace(str(torchs))
            _merge(torchs, self._recorder.ranges, self._unix_offset_ns, file)
        finally:
            torchs.unlink(missing_ok=True)


def _activities(on_device: bool) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]


def _merge(torchs: Path, ranges: Iterable[Range], unix_offset_ns: int, file: Path) -> None:
    """Puts the ranges before torch's events. The text is not parsed: a server that is at work
    has no time for it."""
    base_ns, begin = _layout(torchs)
    new = file.with_name(f"{file.name}.new")
    with torchs.open("rb") as source, new.open("wb") as target:
        target.write(source.read(begin))
        # An event for each would be one large piece of Python; so other threads get their turns.
        for event in _events(ranges, unix_offset_ns - base_ns):
            target.write(json.dumps(event).encode() + b",\n")
        shutil.copyfileobj(source, target)
    new.replace(file)


def _layout(torchs: Path) -> tuple[int, int]:
    """What times count from in ns, and where in the file the events begin."""
    with torchs.open("rb") as source:
        head = source.read(2**20)
        source.seek(max(torchs.stat().st_size - _TAIL_BYTES, 0))
        base = _BASE.search(source.read()) or _BASE.search(head)
    begin = head.find(_EVENTS)
    if base is None or begin < 0:
        raise OSError(f"{torchs}: not of the form that this version of torch should write")
    return int(base[1]), begin + len(_EVENTS)


def _events(ranges: Iterable[Range], offset_ns: int) -> Iterator[dict[str, Any]]:
    process = os.getpid()
    for each in ranges:
        yield {
            "ph": "X", "cat": "octavo", "name": each.name, "pid": process, "tid": each.thread,
            "ts": (each.begin_ns + offset_ns) / 1e3,
            "dur": (each.end_ns - each.begin_ns) / 1e3,
        }  # fmt: skip
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for number in {each.thread for each in ranges}:
        with suppress(KeyError):  # a thread that has ended
            yield {
                "ph": "M", "name": "thread_name", "pid": process, "tid": number,
                "args": {"name": names[number]},
            }  # fmt: skip


class LiveTrace:
    """Steps `first` to `last` of an engine, from 1 on, once."""

    def __init__(
        self, first: int, last: int, folder: Path, library: Library | None, on_device: bool
    ) -> None:
        self._first, self._last, self._folder = first, last, folder
        self._trace: StepTrace | None = None
        self._library, self._on_device = library, on_device
        self.is_over = False
        warm_up(on_device)

    def step(self, number: int, advance: Callable[[], bool]) -> bool:
        """Runs step `number`. A fault of the trace is logged and ends the trace, not the step."""
        if self._trace is None and number >= self._first:
            self._guarded(self._start)
        worked = advance() if self._trace is None else self._trace.step(number, advance)
        if number >= self._last:
            self.finish(number)
        return worked

    def finish(self, number: int) -> None:
        """Writes what there is, up to step `number`."""
        trace, self._trace, self.is_over = self._trace, None, True
        if trace is not None:
            self._guarded(lambda: self._stop(trace, number))

    def _start(self) -> None:
        trace = StepTrace(self._library, self._on_device)
        trace.start()
        self._trace = trace
        log.info("recording steps %d to %d (profile_steps)", self._first, self._last)

    def _stop(self, trace: StepTrace, number: int) -> None:
        trace.stop()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        file = self._folder / f"steps-{self._first}-{number}-{stamp}.json"

        def write() -> None:
            try:
                trace.write(file)
                log.info("steps %d to %d are in %s: open it in ui.perfetto.dev",
                         self._first, number, file)  # fmt: skip
            except Exception:
                log.exception("the trace of steps could not be written")

        # No daemon: what was recorded is written even if the engine stops now.
        threading.Thread(target=write, name="octavo-step-trace").start()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            self.is_over = True
            spans.stop()
            log.exception("the trace of steps has failed (profile_steps); serving goes on")


def description(plan: StepPlan) -> spans.Step:
    """Of a step, before its tokens count as computed."""
    parts = []
    if plan.decodes:
        parts.append(f"decode[{len(plan.decodes)}]")
    if plan.prefills:
        parts.append(f"prefill[{len(plan.prefills)}, {plan.num_prefill_tokens}]")
    rows = [Rows(1, sequence.num_computed_tokens) for sequence in plan.decodes]
    for chunk in plan.prefills:
        rows.append(Rows(chunk.num_tokens, chunk.sequence.num_computed_tokens, chunk.num_logits))
    return spans.Step(" ".join(parts) or spans.NO_STEP.name, rows)
