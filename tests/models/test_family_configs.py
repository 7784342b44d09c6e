"""What each family's config.json means: defaults as transformers' config classes have them, and
refusals by key and value of what is not computed."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import transformers

from factories import FAMILIES
from octavo.errors import UnsupportedModelError
from octavo.models.architecture import ModelConfig
from octavo.models.model_config import read_model_config
from tests.models.configs import ABSENT, assert_refused, read

FULL, SLIDING = "full_attention", "sliding_attention"
# What no default is trusted for: the sizes that the tensors show.
SIZES = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def read_family(folder: Path, architecture: str, **overrides: Any) -> ModelConfig:
    """From the toy's config.json without what a family has a default for."""
    keys = (
        "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_theta",
        "tie_word_embeddings", "attention_bias", "mlp_bias",
    )  # fmt: skip
    bare = {**dict.fromkeys(keys, ABSENT), **SIZES, "architectures": [architecture]}
    return read(folder, **{**bare, **overrides})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_absent_keys_mean_what_transformers_takes_them_for(
    architecture: str, tmp_path: Path
) -> None:
    bare = read_family(tmp_path, architecture)
    config_class = getattr(transformers, architecture).config_class
    full = config_class(**SIZES, architectures=[architecture], eos_token_id=2, dtype="float32")
    full.save_pretrained(tmp_path)
    written = read_model_config(tmp_path)
    for each in fields(ModelConfig):
        assert getattr(bare, each.name) == getattr(written, each.name), each.name


@pytest.mark.parametrize(
    ("architecture", "overrides", "windows"),
    [
        ("MistralForCausalLM", {}, [4096] * 6),
        ("MistralForCausalLM", {"sliding_window": None}, [None] * 6),
        ("MistralForCausalLM", {"sliding_window": 5}, [5] * 6),
        ("Phi3ForCausalLM", {}, [None] * 6),
        ("Phi3ForCausalLM", {"sliding_window": 2047}, [2047] * 6),
        ("Qwen2ForCausalLM", {"sliding_window": 5}, [None] * 6),
        ("Qwen2ForCausalLM", {"sliding_window": 5, "use_sliding_window": True}, [None] * 6),
        ("Qwen2ForCausalLM",
         {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 4},
         [None] * 4 + [5] * 2),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0}, [4096] * 6),
        ("Qwen3ForCausalLM",
         {"sliding_window": 5, "use_sliding_window": True, "layer_types": [FULL, SLIDING] * 3},
         [None, 5] * 3),
        ("Gemma2ForCausalLM", {"sliding_window": 5}, [5, None] * 3),
        ("Gemma2ForCausalLM", {"layer_types": [FULL] * 6, "sliding_window": None}, [None] * 6),
        ("Gemma3ForCausalLM", {"sliding_window": 5}, [5] * 5 + [None]),
        ("Gemma3ForCausalLM", {"sliding_window": 5, "sliding_window_pattern": 3},
         [5, 5, None] * 2),
        ("Gemma3ForCausalLM", {"sliding_window": 5, "layer_types": [FULL] + [SLIDING] * 5},
         [None] + [5] * 5),
    ],
)  # fmt: skip
def test_windows(
    architecture: str, overrides: dict[str, Any], windows: list[int | None], tmp_path: Path
) -> None:
    assert read_family(tmp_path, architecture, **overrides).sliding_windows == tuple(windows)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("clip_qkv", 8.0),
        ("dual_chunk_attention_config", {"chunk_size": 64}),
        ("use_mrope", True),
        ("num_hidden_layers", 1025),
        ("logit_scale", 0.0625),
        ("use_bidirectional_attention", True),
        ("is_causal", False),
        ("mlp_bias", True),
        ("hidden_act", "relu"),
        ("partial_rotary_factor", 0.5),
        ("layer_types", [FULL] * 5 + ["chunked_attention"]),
        ("layer_types", [FULL] * 5),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 100),
        ("sliding_window", 4096),
    ],
)  # fmt: skip
def test_keys_that_a_family_does_not_compute_are_refused(
    architecture: str, key: str, value: object, tmp_path: Path
) -> None:
    family = architecture.removesuffix("ForCausalLM")
    if family in COMPUTES.get(key, ()):
        read_family(tmp_path, architecture, **{key: value})
        return
    name = "hidden_activation" if key == "hidden_act" and family.startswith("Gemma") else key
    with pytest.raises(UnsupportedModelError) as caught:
        read_family(tmp_path, architecture, **{name: value})
    assert caught.value.key == name


COMPUTES = {
    "mlp_bias": ("Llama",),
    "partial_rotary_factor": ("Phi3",),
    "attn_logit_softcapping": ("Gemma2",),
    "final_logit_softcapping": ("Gemma2", "Gemma3"),
    "query_pre_attn_scalar": ("Gemma2", "Gemma3"),
    "sliding_window": ("Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma2", "Gemma3"),
}


@pytest.mark.parametrize("value", [0.3, 1.5, 0.05])
def test_a_part_of_a_head_is_an_even_number_up_to_all(value: float, tmp_path: Path) -> None:
    for where in ({"partial_rotary_factor": value},
                  {"rope_parameters": {"partial_rotary_factor": value}}):  # fmt: skip
        architectures = ["Phi3ForCausalLM"]
        parts = (f"partial_rotary_factor = {value}", "head_dim = 18")
        assert_refused(tmp_path, *parts, architectures=architectures, head_dim=18, **where)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_phi3_computes_plain_and_longrope_only(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "factor": 2.0}
    architectures = ["Phi3ForCausalLM"]
    assert_refused(tmp_path, kind, "default, longrope", architectures=architectures,
                   rope_scaling=rope)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
         ["rope_scaling.rope_type = 'yarn'", "default, linear"]),
        ({"rope_parameters": {FULL: {"rope_type": "yarn", "factor": 2.0}}},
         ["rope_parameters.full_attention.rope_type = 'yarn'", "default, linear"]),
        ({"rope_parameters": {"rope_type": "default"}},
         ["rope_parameters = {'rope_type': 'default'}", FULL, SLIDING]),
        ({"rope_parameters": {FULL: {"rope_theta": "1e6"}}},
         ["rope_parameters.full_attention.rope_theta = '1e6'"]),
        ({"rope_parameters": {FULL: 5}}, ["rope_parameters.full_attention = 5"]),
        ({"rope_local_base_freq": 0}, ["rope_local_base_freq = 0"]),
        ({"sliding_window_pattern": 0}, ["sliding_window_pattern = 0"]),
        ({"sliding_window": None}, ["sliding_window = None"]),
    ],
)  # fmt: skip
def test_gemma3_out_of_range_is_refused(
    overrides: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    architectures = ["Gemma3ForCausalLM"]
    assert_refused(tmp_path, *parts, architectures=architectures, **overrides)


def test_the_multimodal_gemma3_is_refused(tmp_path: Path) -> None:
    name = "Gemma3ForConditionalGeneration"
    assert_refused(tmp_path, f"architectures = ['{name}']", architectures=[name])


@pytest.mark.parametrize("key", ["sliding_window", "max_window_layers", "use_sliding_window"])
@pytest.mark.parametrize("value", [-1, "7", 1.5, [1]])
def test_numbers_of_windows_are_checked(key: str, value: object, tmp_path: Path) -> None:
    architectures = ["Qwen2ForCausalLM"]
    assert_refused(tmp_path, f"{key} = {value!r}", architectures=architectures, **{key: value})
