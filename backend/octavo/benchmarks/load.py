"""Requests submitted together to an engine that the caller steps, and what became of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from octavo.benchmarks.records import LoadRecord, RequestRecord
from octavo.engine import Engine
from octavo.execution.sampler import SampledTokens
from octavo.generation import GenerationRequest, TokenOutput
from octavo.models.model_config import read_model_config
from octavo.sampling_params import parse
from octavo.scheduling.sequence import FinishReason, StepPlan


@dataclass(slots=True)
class _Receiver:
    """A request's sink: when its tokens came, on perf_counter's clock."""

    token_times_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None

    def take(self, output: TokenOutput) -> None:
        self.token_times_s.append(time.perf_counter())
        if output.prompt is not None:
            self.cached_tokens = output.prompt.num_cached_tokens
        self.finish_reason = output.finish_reason

    def record(self, began_s: float) -> RequestRecord:
        times = self.token_times_s
        gaps = (later - sooner for sooner, later in pairwise(times))
        return RequestRecord(
            ttft_s=times[0] - began_s,
            e2e_s=times[-1] - began_s,
            longest_gap_s=max(gaps, default=0.0),
            output_tokens=len(times),
            cached_tokens=self.cached_tokens,
        )


def run_load(engine: Engine, prompts: list[list[int]], output_tokens: int) -> LoadRecord:
    """Submits all prompts, greedy and with the end of sequence ignored, and steps to the end.

    Raises InvalidRequestError if a prompt and its output are longer than the context.
    """
    params = parse({"temperature": 0, "max_tokens": output_tokens, "ignore_eos": True})
    counted_before = _counters(engine)
    receivers = [_Receiver() for _ in prompts]
    peaks = _Peaks(engine)
    with counting_prefill(engine) as prefilled:
        began_s = time.perf_counter()
        for prompt, receiver in zip(prompts, receivers, strict=True):
            engine.submit(GenerationRequest(prompt, params, receiver.take))
        while engine.step():
            peaks.observe()
    # Whatever else a sequence ends by, its numbers would be of another load.
    assert all(r.finish_reason is FinishReason.LENGTH for r in receivers)
    counters = _counters(engine)
    counters.subtract(counted_before)
    return LoadRecord(
        requests=tuple(receiver.record(began_s) for receiver in receivers),
        duration_s=max(receiver.token_times_s[-1] for receiver in receivers) - began_s,
        prefill_tokens=prefilled.tokens,
        block_bytes=peaks.block_bytes,
        peak_running=peaks.running,
        peak_reserved_bytes=peaks.reserved_bytes,
        peak_filled_bytes=peaks.filled_bytes,
        counters=dict(counters),
        quality=engine.quality.label,
    )


def kv_token_bytes(folder: Path, dtype: str) -> int:
    """Keys and values of one token in all layers, stored as they are computed."""
    model = read_model_config(folder)
    stored: torch.dtype = getattr(torch, model.dtype if dtype == "auto" else dtype)
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * stored.itemsize


@dataclass(slots=True)
class PrefillCount:
    tokens: int = 0


@contextmanager
def counting_prefill(engine: Engine) -> Iterator[PrefillCount]:
    """Counts what the runner is given, not what a counter says of it."""
    count, run = PrefillCount(), engine.runner.run

    def counted(plan: StepPlan) -> SampledTokens:
        count.tokens += plan.num_prefill_tokens
        return run(plan)

    engine.runner.run = counted  # type: ignore[method-assign]
    try:
        yield count
    finally:
        # The class has it. To assign it back would make a cycle, which keeps weights in memory.
        del engine.runner.run


class _Peaks:
    def __init__(self, engine: Engine) -> None:
        cache = engine.runner.kv_cache
        self._engine = engine
        self.block_bytes = cache.num_bytes // cache.num_blocks
        self.running = self.reserved_bytes = self.filled_bytes = 0

    def observe(self) -> None:
        gauges = self._engine.gauges
        reserved = gauges.used_blocks * self.block_bytes
        filled = round(reserved * (1 - gauges.fragmentation_ratio))
        self.running = max(self.running, gauges.num_running)
        self.reserved_bytes = max(self.reserved_bytes, reserved)
        self.filled_bytes = max(self.filled_bytes, filled)


def _counters(engine: Engine) -> Counter[str]:
    """The scheduler's running totals by name; those by kind as `name.kind`."""
    totals: Counter[str] = Counter()
    counters = engine.scheduler.counters
    for name in (each.name for each in fields(counters)):
        value: Any = getattr(counters, name)
        if isinstance(value, dict):
            totals.update({f"{name}.{kind}": count for kind, count in value.items()})
        else:
            totals[name] = value
    return totals
