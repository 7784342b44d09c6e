"""Rotary position embedding: from a config's parameters to tables of cosines and sines.

Kinds and defaults are those of transformers' modeling_rope_utils.
"""

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models.config_section import ConfigSection

log = logging.getLogger(__name__)

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)

_NEEDED = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """The first `rotary_dim` numbers of a head are rotated. Of the rest, each kind reads its own:

    linear: factor
    llama3: factor, low_freq_factor, high_freq_factor, original_max_position
    yarn: factor, beta_fast, beta_slow, truncate, original_max_position
    longrope: short_factors, long_factors (one for each pair of a head), original_max_position
    all: attention_factor, by which cosines and sines are multiplied
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    original_max_position: int
    factor: float = 1.0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


def read_rope(
    section: ConfigSection,
    rotary_dim: int,
    max_position: int,
    kinds: tuple[RopeKind, ...] = ROPE_KINDS,
) -> RopeConfig:
    """From `rope_scaling` or `rope_parameters`, `rope_theta` included. Raises ConfigError."""
    kind = section.values.get("rope_type", section.values.get("type", "default"))
    if kind == "su":  # longrope's first name
        kind = "longrope"
    if kind not in [*kinds]:  # a list: what is in the file may not be hashable
        raise UnsupportedModelError(section.path("rope_type"), kind, ", ".join(kinds))
    missing = [key for key in _NEEDED.get(kind, ()) if section.values.get(key) is None]
    if missing:
        raise ConfigError(f"config.json: {section.where} of type {kind} lacks {', '.join(missing)}")
    section.only("mrope_section", None)
    original = section.size("original_max_position_embeddings", max_position)
    is_longrope = kind == "longrope"
    rope = RopeConfig(
        kind=kind,
        theta=section.number("rope_theta"),
        rotary_dim=rotary_dim,
        original_max_position=original,
        factor=section.number("factor", max_position / original if is_longrope else 1.0),
        low_freq_factor=section.number("low_freq_factor", 1.0),
        high_freq_factor=section.number("high_freq_factor", 4.0),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.flag("truncate", True),
        short_factors=section.numbers("short_factor", rotary_dim // 2) if is_longrope else (),
        long_factors=section.numbers("long_factor", rotary_dim // 2) if is_longrope else (),
    )
    _check_ranges(section, rope)
    return replace(rope, attention_factor=_attention_factor(section, rope))


def _check_ranges(section: ConfigSection, rope: RopeConfig) -> None:
    """Refuses numbers that the formulas would divide by zero for."""
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        value, limit = getattr(rope, low), getattr(rope, high)
        if value >= limit:
            raise UnsupportedModelError(section.path(low), value, f"less than {limit}")
    if rope.kind == "yarn" and rope.theta <= 1:
        raise UnsupportedModelError(section.path("rope_theta"), rope.theta, "above 1")
    if rope.kind == "longrope" and rope.original_max_position == 1:
        key = section.path("original_max_position_embeddings")
        raise UnsupportedModelError(key, 1, "above 1")


def _attention_factor(section: ConfigSection, rope: RopeConfig) -> float:
    """The section's own, else what the papers of yarn and longrope recommend."""
    recommended = 1.0
    if rope.kind == "longrope" and rope.factor > 1:
        recommended = math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position))
    if rope.kind == "yarn" and rope.factor > 1:
        growth = 0.1 * math.log(rope.factor)
        recommended = 1 + growth
        mscale, all_dim = (section.optional_number(key) for key in ("mscale", "mscale_all_dim"))
        if mscale is not None and all_dim is not None:
            recommended = (1 + growth * mscale) / (1 + growth * all_dim)
    if rope.kind in ("yarn", "longrope"):
        return section.number("attention_factor", recommended)
    return recommended


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
