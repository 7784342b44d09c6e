"""Rotary embedding: both styles of its parameters are read, and what is not computed is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.models.rope import RotaryTable, rope_frequencies
from octavo.models.rope_config import RopeConfig, RopeKind
from tests.models.configs import ABSENT, assert_refused, read

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "short_factor": [1.0] * 8,
    "long_factor": [2, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.5],
    "original_max_position_embeddings": 64,
}


def rope_of(kind: RopeKind, theta: float = 1e4, original: int = 256, **more: Any) -> RopeConfig:
    return RopeConfig(kind, theta, 16, original, **more)


LLAMA3_ROPE = rope_of("llama3", original=64, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN_ROPE = rope_of("yarn", original=64, factor=4.0, attention_factor=1 + 0.1 * math.log(4))
LONGROPE_ROPE = rope_of(
    "longrope", original=64, factor=4.0,
    attention_factor=math.sqrt(1 + math.log(4) / math.log(64)),
    short_factors=(1.0,) * 8, long_factors=(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "rope"),
    [
        ({"rope_theta": 5e5}, rope_of("default", 5e5)),
        ({"rope_theta": 500000}, rope_of("default", 5e5)),
        ({"rope_scaling": None}, rope_of("default", 1e4)),
        ({"rope_scaling": {}}, rope_of("default", 1e4)),
        ({"rope_scaling": {"rope_type": "default"}}, rope_of("default", 1e4)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, rope_of("linear", factor=4.0)),
        ({"rope_scaling": {"type": "x", "rope_type": "default"}}, rope_of("default", 1e4)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, LLAMA3_ROPE),
        ({"rope_parameters": {"rope_theta": 7e4, "rope_type": "default"}},
         rope_of("default", 7e4)),
        ({"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 7e4}},
         rope_of("default", 7e4)),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "rope_theta": 1e4}}, LLAMA3_ROPE),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
         rope_of("linear", factor=2.0)),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
         rope_of("linear", factor=2.0)),
        ({"rope_parameters": {"partial_rotary_factor": 1.0}}, rope_of("default", 1e4)),
        ({"rope_scaling": YARN}, YARN_ROPE),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}},
         replace(YARN_ROPE, original_max_position=256)),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 32},
         replace(YARN_ROPE, original_max_position=32)),
        ({"rope_scaling": {**YARN, "attention_factor": 1.5}},
         replace(YARN_ROPE, attention_factor=1.5)),
        ({"rope_scaling": {**YARN, "factor": 0.5}},
         replace(YARN_ROPE, factor=0.5, attention_factor=1.0)),
        ({"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False}},
         replace(YARN_ROPE, beta_fast=16.0, beta_slow=2.0, truncate=False)),
        ({"rope_scaling": {"rope_type": "longrope", **LONGROPE}}, LONGROPE_ROPE),
        ({"rope_scaling": {"type": "su", **LONGROPE}}, LONGROPE_ROPE),
        ({"rope_scaling": {"type": "longrope", **LONGROPE, "factor": 2}},
         replace(LONGROPE_ROPE, factor=2.0, attention_factor=math.sqrt(7 / 6))),
    ],
)  # fmt: skip
def test_reads_rope_of_both_styles(
    tmp_path: Path, overrides: dict[str, Any], rope: RopeConfig
) -> None:
    assert read(tmp_path, **overrides).rope == rope


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["dynamic", "mrope", "proportional", "ntk", None, ["linear"]])
def test_other_rope_types_are_refused(tmp_path: Path, style: str, kind: object) -> None:
    for name in ("rope_type", "type"):
        assert_refused(
            tmp_path, f"{style}.rope_type = {kind!r}", "default, linear, llama3, yarn, longrope",
            **{style: {name: kind, "factor": 4.0}},
        )  # fmt: skip


@pytest.mark.parametrize("key", LLAMA3)
def test_rope_without_its_numbers_is_refused(tmp_path: Path, key: str) -> None:
    rest = {k: v for k, v in LLAMA3.items() if k != key}
    assert_refused(tmp_path, "llama3", key, rope_scaling={"rope_type": "llama3", **rest})
    if key == "factor":
        assert_refused(tmp_path, "linear", key, rope_scaling={"type": "linear"})


@pytest.mark.parametrize("value", [0, -1.5, "4", True, [], float("nan"), float("inf")])
@pytest.mark.parametrize("key", [*LLAMA3, "rope_theta"])
def test_rope_numbers_are_above_zero(tmp_path: Path, key: str, value: object) -> None:
    rope = {"rope_type": "llama3", **LLAMA3, key: value}
    assert_refused(tmp_path, f"rope_scaling.{key} = {value!r}", rope_scaling=rope)


def test_rope_frequency_factors_are_in_order(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}
    assert_refused(tmp_path, "rope_scaling.low_freq_factor = 4.0", "4.0", rope_scaling=rope)


def test_partial_rope_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "partial_rotary_factor": 0.25}
    assert_refused(tmp_path, "rope_parameters.partial_rotary_factor = 0.25", rope_parameters=rope)


def test_multimodal_rope_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    assert_refused(tmp_path, "rope_scaling.mrope_section = [2, 3, 3]", rope_scaling=rope)


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
@pytest.mark.parametrize(
    "value", [None, 2.0, "1", [], [1.0] * 7, [1.0] * 9, [0.0] * 8, [True] * 8, [[1.0]] * 8]
)
def test_longrope_has_a_factor_for_each_pair(tmp_path: Path, key: str, value: object) -> None:
    rope = {"rope_type": "longrope", **LONGROPE, key: value}
    assert_refused(tmp_path, key, rope_scaling=rope)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"beta_fast": 1.0}, "rope_scaling.beta_slow = 1.0"),
        ({"beta_slow": 40}, "rope_scaling.beta_slow = 40.0"),
        ({"rope_theta": 1}, "rope_scaling.rope_theta = 1.0"),
        ({"truncate": "no"}, "rope_scaling.truncate = 'no'"),
        ({"mscale": 0}, "rope_scaling.mscale = 0"),
        ({"attention_factor": -1.0}, "rope_scaling.attention_factor = -1.0"),
    ],
)
def test_yarn_out_of_range_is_refused(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    assert_refused(tmp_path, part, rope_scaling={**YARN, "mscale_all_dim": 1.0, **changes})


def test_longrope_of_one_token_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 1}
    assert_refused(tmp_path, "original_max_position_embeddings = 1", rope_scaling=rope)


def test_longrope_is_long_beyond_the_original_context() -> None:
    plain = rope_frequencies(rope_of("default"), 65)
    assert torch.equal(rope_frequencies(LONGROPE_ROPE, 64), plain)
    long = plain / torch.tensor(LONGROPE_ROPE.long_factors)
    assert torch.equal(rope_frequencies(LONGROPE_ROPE, 65), long)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("original", [1, 7, 64, 4096])
@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (2.0, 1.9), (0.9, 0.1)])
def test_yarn_equals_transformers(
    tmp_path: Path, original: int, fast: float, slow: float, truncate: bool
) -> None:
    """Also where the ramp has no length, or lies outside of the head."""
    parameters = {
        **YARN, "rope_theta": 1e4, "original_max_position_embeddings": original,
        "beta_fast": fast, "beta_slow": slow, "truncate": truncate,
    }  # fmt: skip
    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=256,
        rope_parameters=dict(parameters),
    )  # fmt: skip
    expected, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](theirs)
    ours = read(tmp_path, rope_scaling=parameters).rope
    torch.testing.assert_close(rope_frequencies(ours, 256), expected, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(attention_factor)


def test_table_holds_scaled_cosines_and_sines() -> None:
    cos, sin = RotaryTable(rope_of("default", attention_factor=2.0), 8).at(torch.tensor([5, 0]))
    angles = 5 * rope_frequencies(rope_of("default"), 8)
    assert cos.shape == sin.shape == (2, 8)
    torch.testing.assert_close(cos[0], 2 * angles.cos())
    torch.testing.assert_close(sin[0], 2 * angles.sin())
    assert cos[1].tolist() == [2.0] * 8 and sin[1].tolist() == [0.0] * 8
