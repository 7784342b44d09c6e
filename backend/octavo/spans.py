"""Named ranges of the engine's time, for whoever looks: NVTX where there is a GPU, and a Recorder
while one records. Otherwise nothing, at the price of a call.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType

import torch

from octavo.planner.operations import Rows

_HAS_CUDA = torch.version.cuda is not None
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True, slots=True)
class Range:
    """In ns of time.perf_counter_ns. thread: the system's number of it."""

    name: str
    begin_ns: int
    end_ns: int
    thread: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one computes; `name` is of the form decode[sequences] prefill[sequences, tokens]."""

    name: str
    rows: Sequence[Rows]


DESCRIBE = "describe"  # the range in which a step is told to the recorder, and which is its price
NO_STEP = Step("nothing to compute", ())


@dataclass(slots=True)
class Recorder:
    """Keeps ranges of all threads. on_device: operations are marked for torch's profiler, which
    tells what they took on the device."""

    on_device: bool = False
    ranges: list[Range] = field(default_factory=list)
    step: Step = NO_STEP  # the latest that was planned

    def add(self, name: str, begin_ns: int, end_ns: int) -> None:
        self.ranges.append(Range(name, begin_ns, end_ns, threading.get_native_id()))

    def take(self) -> list[Range]:
        """Those since the last call, of the thread that steps and of others."""
        taken, self.ranges = self.ranges, []
        return taken


_recorder: Recorder | None = None


class _Recorded:
    """A range of `recorder`, and one of NVTX."""

    __slots__ = ("_began_ns", "_name", "_other", "_recorder")

    def __init__(self, recorder: Recorder, name: str, other: AbstractContextManager[None]) -> None:
        self._recorder, self._name, self._other = recorder, name, other

    def __enter__(self) -> None:
        self._other.__enter__()
        self._began_ns = time.perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recorder.add(self._name, self._began_ns, time.perf_counter_ns())
        self._other.__exit__(kind, value, trace)


def span(name: str) -> AbstractContextManager[None]:
    """`with span("forward"):` is a range of the engine's step or of a thread beside it."""
    if _HAS_CUDA and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        nvtx: AbstractContextManager[None] = torch.cuda.nvtx.range(f"octavo {name}")
    else:
        nvtx = _NOTHING
    return nvtx if _recorder is None else _Recorded(_recorder, name, nvtx)


def operation(name: str) -> AbstractContextManager[None]:
    """A range of one operation within the forward pass: only while somebody records, since there
    are hundreds in a step."""
    if _recorder is None:
        return _NOTHING
    marked = torch.profiler.record_function(f"octavo {name}") if _recorder.on_device else _NOTHING
    return _Recorded(_recorder, name, marked)


def begin_step(step: Step) -> None:
    if _recorder is not None:
        _recorder.step = step


def is_recording() -> bool:
    return _recorder is not None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """One at a time in a process."""
    start(recorder)
    try:
        yield
    finally:
        stop()


def start(recorder: Recorder) -> None:
    global _recorder
    assert _recorder is None, "somebody records already"
    _recorder = recorder


def stop() -> None:
    global _recorder
    _recorder = None
