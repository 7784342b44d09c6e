"""Efficiency constants from measured steps: what `latency` multiplies a machine's peaks with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from octavo.planner.latency import ASSUMED, Efficiency, Loaded, Speed, decode_step_s, prefill_s
from octavo.planner.roofline import Peaks

_FIRST_FACTOR, _LAST_FACTOR = 1.5, 1.001
# Nothing is faster than the peak: a model that seems so was read from a cache.
_BOUNDS = {
    "read_ratio": (0.01, 1.0),
    "int4_read_ratio": (0.01, 1.0),
    "kv_read_ratio": (0.01, 1.0),
    "decode_compute_ratio": (0.01, 1.0),
    "prefill_compute_ratio": (0.01, 1.0),
    "step_overhead_s": (1e-6, 1.0),
}
_DECODE = ("kv_read_ratio", "decode_compute_ratio", "step_overhead_s")


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """A measured step that decodes a token of each of `sequences`."""

    loaded: Loaded
    peaks: Peaks
    sequences: int
    context_tokens: float
    step_s: float


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """A measured prompt, computed alone."""

    loaded: Loaded
    peaks: Peaks
    prompt_tokens: int
    chunk_tokens: int
    ttft_s: float


def fit_efficiency(
    decodes: Sequence[DecodeSample],
    prefills: Sequence[PrefillSample] = (),
    start: Efficiency = ASSUMED["cpu"],
) -> Efficiency:
    """That which predicts the samples with the least mean of the logarithm of the ratio, signs
    left out: short steps count as much as long ones, and the few that a neighbour disturbed do not
    pull it their way, as they would if squared. The squares' minimum is where the search for it
    begins, since they have no kinks to be caught in. Without samples of a kind its constants stay
    as they are in `start`."""

    def decode_loss(own: Efficiency, power: int) -> float:
        return sum(
            abs(math.log(predicted_step_s(each, own) / each.step_s)) ** power for each in decodes
        )

    def prefill_loss(own: Efficiency, power: int) -> float:
        return sum(
            abs(math.log(predicted_ttft_s(each, own) / each.ttft_s)) ** power for each in prefills
        )

    reads = {"int4_read_ratio" if each.loaded.weight_bits <= 4 else "read_ratio"
             for each in decodes}  # fmt: skip
    for power in (2, 1):
        if decodes:
            start = _descend(partial(decode_loss, power=power), start, (*sorted(reads), *_DECODE))
        if prefills:
            loss = partial(prefill_loss, power=power)
            start = _descend(loss, start, ("prefill_compute_ratio",))
    return start


def predicted_step_s(sample: DecodeSample, efficiency: Efficiency) -> float:
    return decode_step_s(
        sample.loaded,
        Speed.of(sample.peaks, efficiency),
        sample.sequences,
        sample.context_tokens,
    )


def predicted_ttft_s(sample: PrefillSample, efficiency: Efficiency) -> float:
    """Each of the prompt's chunks is a step with no decodes."""
    speed = Speed.of(sample.peaks, efficiency)
    chunks = -(-sample.prompt_tokens // sample.chunk_tokens)
    prompt_s = prefill_s(sample.loaded, speed, sample.prompt_tokens, 0, sample.chunk_tokens)
    return prompt_s + chunks * decode_step_s(sample.loaded, speed, 0, 0)


def _descend(
    loss: Callable[[Efficiency], float], start: Efficiency, names: Sequence[str]
) -> Efficiency:
    """Compass search over the constants' logarithms: the loss of four constants and some ten
    samples has no use for more."""
    best, best_loss, factor = start, loss(start), _FIRST_FACTOR
    while factor > _LAST_FACTOR:
        improved = False
        for name in names:
            low, high = _BOUNDS[name]
            for step in (factor, 1 / factor):
                value = min(max(getattr(best, name) * step, low), high)
                tried = replace(best, **{name: value})
                tried_loss = loss(tried)
                if tried_loss < best_loss:
                    best, best_loss, improved = tried, tried_loss, True
        if not improved:
            factor = math.sqrt(factor)
    return best
