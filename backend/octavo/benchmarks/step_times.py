"""Where the time of decode steps goes: the model's forward pass, and all around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from octavo.engine import Engine
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache


@dataclass(slots=True)
class StepTimes:
    """Of steps that only decode, one entry each."""

    forward_s: list[float] = field(default_factory=list)
    host_s: list[float] = field(default_factory=list)  # the step less the forward pass


@contextmanager
def timing_steps(engine: Engine, times: StepTimes) -> Iterator[None]:
    """Adds to `times` what the engine's steps take within the context: a microsecond a step."""
    step, forward = engine.step, engine.runner.model.forward
    forward_s = 0.0

    def timed_forward(batch: ForwardBatch, kv_cache: KVCache, out: Tensor | None = None) -> Tensor:
        nonlocal forward_s
        began_s = time.perf_counter()
        logits = forward(batch, kv_cache, out)
        forward_s += time.perf_counter() - began_s
        return logits

    def timed_step() -> bool:
        nonlocal forward_s
        forward_s, decoded_s = 0.0, engine.stats.busy_s["decode"]
        began_s = time.perf_counter()
        worked = step()
        elapsed_s = time.perf_counter() - began_s
        if engine.stats.busy_s["decode"] > decoded_s:
            assert forward_s > 0, "a step did not go through the model's forward"
            times.forward_s.append(forward_s)
            times.host_s.append(elapsed_s - forward_s)
        return worked

    engine.step = timed_step  # type: ignore[method-assign]
    engine.runner.model.forward = timed_forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        # The classes have them. To assign them back would make cycles, which keep the weights.
        del engine.step, engine.runner.model.forward
