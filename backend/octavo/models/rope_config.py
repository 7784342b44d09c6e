"""A config's parameters of rotary position embedding; the tables made of them are in `rope`.

Kinds and defaults are those of transformers' modeling_rope_utils. Without torch: plans read
configs too.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models.config_section import ConfigSection

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
