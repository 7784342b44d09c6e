"""config.json: every style that exists is read, all else is refused by key and value."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories import TOY_CONFIG
from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models.model_config import ModelConfig, read_model_config
from octavo.models.rope_config import RopeConfig
from tests.models.configs import ABSENT, assert_refused, read


def test_reads_the_toy(tmp_path: Path) -> None:
    assert read(tmp_path) == ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position=256,
        tie_embeddings=False,
        rope=RopeConfig("default", 10000.0, 16, 256),
        attention_scale=0.25,
        sliding_windows=(None, None),
        dtype="float32",
        eos_token_ids=(2,),
    )


@pytest.mark.parametrize("value", [ABSENT, None], ids=["absent", "null"])
@pytest.mark.parametrize(
    ("key", "field", "default"),
    [
        ("num_key_value_heads", "num_kv_heads", 4),
        ("head_dim", "head_dim", 16),
        ("rms_norm_eps", "rms_norm_eps", 1e-6),
        ("max_position_embeddings", "max_position", 2048),
        ("tie_word_embeddings", "tie_embeddings", False),
        ("attention_bias", "qkv_bias", False),
        ("attention_bias", "output_bias", False),
        ("mlp_bias", "mlp_bias", False),
        ("rope_theta", "rope", RopeConfig("default", 10000.0, 16, 256)),
        ("torch_dtype", "dtype", "float32"),
        ("eos_token_id", "eos_token_ids", ()),
    ],
)
def test_defaults(tmp_path: Path, key: str, field: str, default: object, value: object) -> None:
    assert getattr(read(tmp_path, **{key: value}), field) == default


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": ABSENT, "dtype": "float16"}, "float16"),
        ({"torch_dtype": "float32", "dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_reads_dtype_of_both_styles(tmp_path: Path, overrides: dict[str, Any], dtype: str) -> None:
    assert read(tmp_path, **overrides).dtype == dtype


@pytest.mark.parametrize(
    ("generation", "own", "expected"),
    [
        (None, 2, (2,)),
        (None, [2, 5], (2, 5)),
        (None, ABSENT, ()),
        ({}, 2, (2,)),
        ({"eos_token_id": None}, 2, (2,)),
        ({"eos_token_id": 7}, 2, (7,)),
        ({"eos_token_id": [7, 8, 0, 511]}, 2, (7, 8, 0, 511)),
        ({"eos_token_id": 0}, 2, (0,)),
        ({"eos_token_id": []}, 2, ()),
    ],
)
def test_eos_is_the_generation_configs(
    tmp_path: Path, generation: dict[str, Any] | None, own: object, expected: tuple[int, ...]
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read(tmp_path, eos_token_id=own).eos_token_ids == expected


@pytest.mark.parametrize("value", [-1, 512, 10**9, "2", True, 2.0, {"a": 1}, [2, None], [[2]]])
@pytest.mark.parametrize("where", ["config", "generation"])
def test_eos_that_is_no_token_is_refused(tmp_path: Path, value: object, where: str) -> None:
    own = {"eos_token_id": value} if where == "config" else {}
    if where == "generation":
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert_refused(tmp_path, "eos_token_id", "0 to 511", **own)


@pytest.mark.parametrize(
    "value",
    [None, [], "LlamaForCausalLM", 5, {"a": 1}, [["LlamaForCausalLM"]], [None], ABSENT,
     ["GPT2LMHeadModel"], ["llamaforcausallm"], ["LlamaForSequenceClassification"]],
)  # fmt: skip
def test_other_architectures_are_refused(tmp_path: Path, value: object) -> None:
    shown = repr(None if value is ABSENT else value)
    assert_refused(tmp_path, f"architectures = {shown}", "LlamaForCausalLM", architectures=value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("hidden_act", None),
        ("partial_rotary_factor", 0.5),
        ("sliding_window", 4096),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.0625),
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("torch_dtype", "float64"),
        ("torch_dtype", "torch.bfloat16"),
        ("dtype", "int8"),
        ("dtype", ["bfloat16"]),
        ("head_dim", 15),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 8),
        ("rope_scaling", [1]),
        ("rope_scaling", "linear"),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(tmp_path, **{key: value})
    assert (caught.value.key, caught.value.value) == (key, value)
    assert f"config.json: {key} = {value!r} is not supported; supported: " in str(caught.value)


SIZES = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
]  # fmt: skip
BAD_SIZES = [0, -4, 2**31, 10**400, 4.5, 64.0, "64", True, [64], {}, float("inf"), float("nan")]


@pytest.mark.parametrize("value", BAD_SIZES)
@pytest.mark.parametrize("key", SIZES)
def test_sizes_are_whole_numbers_above_zero(tmp_path: Path, key: str, value: object) -> None:
    assert_refused(tmp_path, f"config.json: {key} = {value!r}; a whole number", **{key: value})


@pytest.mark.parametrize("key", SIZES[:5])
@pytest.mark.parametrize("value", [ABSENT, None], ids=["absent", "null"])
def test_sizes_without_a_default_are_needed(tmp_path: Path, key: str, value: object) -> None:
    assert_refused(tmp_path, f"config.json: {key} is missing", **{key: value})


def test_more_heads_than_hidden_size_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "head_dim = 0", head_dim=None, num_attention_heads=128)


@pytest.mark.parametrize(
    "value", [0, -1e-6, "1e-6", True, [1e-6], float("nan"), float("inf"), 10**400]
)
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_numbers_are_above_zero(tmp_path: Path, key: str, value: object) -> None:
    assert_refused(tmp_path, f"config.json: {key} = {value!r}; a number above 0", **{key: value})


@pytest.mark.parametrize("value", ["false", 1, [True], {"a": 1}])
@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_flags_are_true_or_false(tmp_path: Path, key: str, value: object) -> None:
    assert_refused(tmp_path, f"config.json: {key} = {value!r}; true or false", **{key: value})


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "config.json: "),
        (b"not json", "config.json: "),
        (b'{"vocab_size": 512', "config.json: "),
        (b"\xff\xfe", "config.json: "),
        (b"[1, 2]", "a JSON object is expected"),
        (b'"LlamaForCausalLM"', "a JSON object is expected"),
        (b"null", "a JSON object is expected"),
        (b"[" * 100_000, "config.json: "),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_is_not_a_json_object_is_refused(
    tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TOY_CONFIG), encoding="utf-8")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=part) as caught:
        read_model_config(tmp_path)
    assert name in str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a checkpoint folder, it has no config\.json"):
        read_model_config(tmp_path)


def test_a_config_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_model_config(tmp_path)
