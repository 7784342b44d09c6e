"""Rotary position embedding: tables of cosines and sines from a config's parameters."""

import logging
import math

import torch
from torch import Tensor

from octavo.models.rope_config import RopeConfig

log = logging.getLogger(__name__)


def rope_frequencies(rope: RopeConfig, max_position: int) -> Tensor:
    """Angle per position of each pair of a head, [rotary_dim / 2] float32, in an engine whose
    contexts have up to `max_position` tokens.

    `linear` divides positions by the factor. `llama3` (Llama 3.1) and `yarn` (Peng et al., 2023,
    arXiv:2309.00071) divide only the low frequencies, and blend between. `longrope` (Ding et al.,
    2024, arXiv:2402.13753) has a divisor for each frequency, of which there are two sets: one up
    to the original context, one beyond it. A cached key cannot change sets when its sequence
    grows, so the engine's longest context chooses for all its sequences.
    """
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "longrope":
        is_long = max_position > rope.original_max_position
        log.info(
            "longrope: %s factors, as contexts have up to %d tokens and the original ones %d",
            "long" if is_long else "short", max_position, rope.original_max_position,
        )  # fmt: skip
        return frequencies / torch.tensor(rope.long_factors if is_long else rope.short_factors)
    if rope.kind == "llama3":
        rotations = rope.original_max_position * frequencies / (2 * math.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        kept = ((rotations - rope.low_freq_factor) / span).clamp(0, 1)
        return (1 - kept) * frequencies / rope.factor + kept * frequencies
    if rope.kind == "yarn":
        kept = 1 - _yarn_ramp(rope)
        return (1 - kept) * frequencies / rope.factor + kept * frequencies
    return frequencies


def _yarn_ramp(rope: RopeConfig) -> Tensor:
    """0 for pairs that rotate more than beta_fast times within the original context, 1 for those
    that rotate less than beta_slow times, rising between. [rotary_dim / 2]"""

    def pair_of(rotations: float) -> float:
        wavelength = rope.original_max_position / rotations
        return rope.rotary_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.rotary_dim - 1)
    span = last - first or 0.001  # a step instead of a ramp
    return ((torch.arange(rope.rotary_dim // 2) - first) / span).clamp(0, 1)


class RotaryTable:
    """Cosines and sines of every position, [max_position, rotary_dim / 2] float32."""

    def __init__(
        self, rope: RopeConfig, max_position: int, device: torch.device | None = None
    ) -> None:
        positions = torch.arange(max_position, dtype=torch.float32)
        angles = torch.outer(positions, rope_frequencies(rope, max_position))
        self.cosines = (angles.cos() * rope.attention_factor).to(device)
        self.sines = (angles.sin() * rope.attention_factor).to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] → cosines and sines, [T, rotary_dim / 2] each."""
        return self.cosines[positions], self.sines[positions]
