"""Checkpoints that are quantized already: the same logits as what their numbers mean, or a refusal
that names what is not served."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factories import greedy, make_engine, random_prompts
from octavo.engine import Engine
from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels import QuantizedWeight
from octavo.kernels.reference_weights import dequantize_weight
from octavo.models.quantized_checkpoint import take_quantized
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import StoredFormat
from tests.models.logits import our_logits
from tests.models.stored_checkpoints import (
    FILE,
    change_config,
    quantization_config,
    write_stored,
)

# method, bits in the file, group size, scales
FORMATS = [
    ("compressed-tensors", 4, 64, torch.bfloat16), ("compressed-tensors", 4, 128, torch.float16),
    ("compressed-tensors", 4, None, torch.bfloat16), ("compressed-tensors", 8, 32, torch.float32),
    ("compressed-tensors", 8, None, torch.bfloat16), ("gptq", 4, 64, torch.float16),
    ("gptq", 8, 128, torch.float16), ("gptq", 4, None, torch.float16),
    ("gptq_v2", 4, 32, torch.bfloat16), ("awq", 4, 64, torch.float16),
    ("awq", 4, None, torch.float16),
]  # fmt: skip
FORMAT = pytest.mark.parametrize(("method", "bits", "group_size", "scales"), FORMATS)
Q = "model.layers.0.self_attn.q_proj"


def distance(got: Engine, expected: Engine) -> float:
    """Of the logits of some prompts: the largest difference, relative to the largest logit."""
    worst = 0.0
    for prompt in random_prompts([1, 30, 90]):
        mine, theirs = our_logits(got, prompt, 16), our_logits(expected, prompt)
        worst = max(worst, float((mine - theirs).abs().max() / theirs.abs().max()))
    return worst


@FORMAT
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_logits_are_those_of_what_the_numbers_mean(
    tmp_path: Path, method: str, bits: int, group_size: int | None, scales: torch.dtype,
    kernels: str,
) -> None:  # fmt: skip
    stored, meant = write_stored(tmp_path, method, bits, group_size, scales)
    engine = make_engine(stored, kernels=kernels)
    assert distance(engine, make_engine(meant, kernels="reference")) <= 1e-4
    own = engine.runner.weight_format
    held_bits = 8 if method == "awq" else bits
    assert (own.name, own.group_size) == (f"int{held_bits}", group_size)
    assert engine.quality.label == "ungated"


def test_eight_bit_inputs_stay_eight_bit(tmp_path: Path) -> None:
    stored, meant = write_stored(tmp_path, "w8a8", 8, None, torch.bfloat16)
    engine = make_engine(stored)
    assert engine.runner.weight_format.name == "w8a8"
    # What rounding inputs costs; measured: 0.062.
    assert 1e-2 < distance(engine, make_engine(meant)) < 0.1


@FORMAT
def test_numbers_are_exact(
    tmp_path: Path, method: str, bits: int, group_size: int | None, scales: torch.dtype
) -> None:
    """Bit by bit what number · scale is, each matrix, in the type of the checkpoint's scales."""
    stored, meant = write_stored(tmp_path, method, bits, group_size, scales)
    expected = load_file(meant / FILE)
    own = make_engine(stored, kernels="reference").runner.model_config.stored_format
    assert own is not None
    with Checkpoint(stored, torch.bfloat16) as checkpoint:
        for name, tensor in expected.items():
            if tensor.dim() != 2 or "proj" not in name:
                continue
            module = name.removesuffix(".weight")
            taken = take_quantized(checkpoint, own, module, *tensor.shape)
            assert taken is not None
            assert taken.scales.dtype is (scales if group_size else torch.float32)
            assert taken.stored.is_contiguous() and taken.scales.is_contiguous()
            assert torch.equal(dequantize_weight(taken), tensor), name
        assert take_quantized(checkpoint, own, "lm_head", 512, 128) is None


@pytest.mark.parametrize("method", ["compressed-tensors", "gptq", "awq"])
@pytest.mark.parametrize(
    "overrides",
    [{"tie_word_embeddings": True},
     {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}],
    ids=["tied", "biases"],
)  # fmt: skip
def test_families_parts(tmp_path: Path, method: str, overrides: dict[str, Any]) -> None:
    stored, meant = write_stored(tmp_path, method, 4, 64, **overrides)
    assert distance(make_engine(stored), make_engine(meant, kernels="reference")) <= 1e-4


@pytest.mark.parametrize("method", ["compressed-tensors", "gptq"])
def test_what_is_quantized_is_what_the_tensors_say(tmp_path: Path, method: str) -> None:
    """A quantized lm_head is served, and matrices that were left alone are too."""
    stored, meant = write_stored(
        tmp_path, method, 4, 64, plain=("embed_tokens", "down_proj", "layers.1.self_attn")
    )
    engine = make_engine(stored)
    assert distance(engine, make_engine(meant, kernels="reference")) <= 1e-4
    model = engine.runner.model
    assert model.lm_head.format.name == "int4"
    assert model.layers[0].down.format.name == model.layers[1].qkv.format.name == "float32"


def test_bfloat16_generates_as_what_it_means(tmp_path: Path) -> None:
    stored, meant = write_stored(tmp_path, "gptq", 4, 64, torch.float16)
    prompts = random_prompts([5, 40])
    mine, theirs = (
        make_engine(folder, dtype="bfloat16", kernels="auto") for folder in (stored, meant)
    )
    for prompt in prompts:
        got, expected = our_logits(mine, prompt), our_logits(theirs, prompt)
        assert float((got - expected).norm() / expected.norm()) < 0.03
    assert all(result.token_ids for result in mine.generate(prompts, greedy(4)))


@FORMAT
def test_bytes_are_counted_as_they_are_stored(
    tmp_path: Path, method: str, bits: int, group_size: int | None, scales: torch.dtype
) -> None:
    stored, meant = write_stored(tmp_path, method, bits, group_size, scales)
    sizes = [t.shape for n, t in load_file(meant / FILE).items() if "proj" in n]
    held, scale_bytes = 8 if method == "awq" else bits, scales.itemsize if group_size else 4
    matrices = sum(
        out * width * held // 8 + scale_bytes * out * (width // group_size if group_size else 1)
        for out, width in sizes
    )
    model = make_engine(stored).runner.model
    assert model.step_weight_bytes == matrices + 4 * (5 * 128 + 512 * 128)
    assert model.num_bytes == model.step_weight_bytes + 4 * 512 * 128


def test_the_log_says_what_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored, _ = write_stored(tmp_path, "awq", 4, 64)
    with caplog.at_level(logging.INFO):
        make_engine(stored)
    assert "int8 in groups of 64 weights" in caplog.text
    assert "of the checkpoint (awq of 4 bits in groups of 64)" in caplog.text
    assert "lm_head float32" in caplog.text and "ungated" in caplog.text


@pytest.mark.parametrize("wanted", ["int8", "int4", "w8a8", "w4a8"])
def test_it_is_not_rounded_twice(tmp_path: Path, wanted: str) -> None:
    stored, _ = write_stored(tmp_path, "gptq", 4, 32)
    with pytest.raises(
        ConfigError, match=r"already \(gptq of 4 bits in groups of 32\); use 'auto'"
    ):
        make_engine(stored, weight_format=wanted)


def test_zeros_as_biases_are_dropped(tmp_path: Path) -> None:
    """Older GPTQ files have them, whatever the family."""
    stored, meant = write_stored(tmp_path, "gptq", 4, 64)
    tensors = load_file(stored / FILE)
    save_file({**tensors, f"{Q}.bias": torch.zeros(128)}, stored / FILE)
    assert distance(make_engine(stored), make_engine(meant)) <= 1e-4
    save_file({**tensors, f"{Q}.bias": torch.ones(128)}, stored / FILE)
    with pytest.raises(ConfigError, match=f"{Q}.bias: the decoder has no bias"):
        make_engine(stored)


def set_key(config: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split("/")
    for part in parents:
        config = config[part]
    config[last] = value


GROUP = "config_groups/group_0"


@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        ("gptq", "quant_method", "bitsandbytes"), ("gptq", "quant_method", None),
        ("gptq", "quant_method", ["gptq"]), ("gptq", "bits", 2), ("gptq", "bits", 3),
        ("gptq", "bits", "4"), ("gptq", "bits", True), ("gptq", "sym", False),
        ("gptq", "desc_act", True), ("gptq", "group_size", 100), ("gptq", "group_size", 0),
        ("gptq", "group_size", None), ("gptq", "group_size", 1024),
        ("gptq", "checkpoint_format", "marlin"), ("gptq", "dynamic", {"-:.*down.*": {}}),
        ("awq", "bits", 8), ("awq", "version", "gemv"), ("awq", "version", 3),
        ("awq", "zero_point", False),
        ("compressed-tensors", "format", "float-quantized"),
        ("compressed-tensors", "format", "marlin-24"), ("compressed-tensors", "format", None),
        ("compressed-tensors", "quantization_status", "initialized"),
        ("compressed-tensors", "kv_cache_scheme", {"num_bits": 8}),
        ("compressed-tensors", "config_groups", {}), ("compressed-tensors", "config_groups", []),
        ("compressed-tensors", "config_groups", {"group_0": 5}),
        ("compressed-tensors", f"{GROUP}/targets", ["re:.*down_proj"]),
        ("compressed-tensors", f"{GROUP}/weights", None),
        ("compressed-tensors", f"{GROUP}/weights/num_bits", 3),
        ("compressed-tensors", f"{GROUP}/weights/symmetric", False),
        ("compressed-tensors", f"{GROUP}/weights/type", "float"),
        ("compressed-tensors", f"{GROUP}/weights/strategy", "tensor"),
        ("compressed-tensors", f"{GROUP}/weights/actorder", "group"),
        ("compressed-tensors", f"{GROUP}/weights/group_size", 16),
        ("compressed-tensors", f"{GROUP}/input_activations", "int8"),
        ("w8a8", f"{GROUP}/input_activations/dynamic", False),
        ("w8a8", f"{GROUP}/input_activations/strategy", "tensor"),
        ("w8a8", f"{GROUP}/weights/num_bits", 4),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused(
    tmp_path: Path, method: str, path: str, value: object
) -> None:
    bits, group_size = (8, None) if method == "w8a8" else (4, 64)
    stored, _ = write_stored(tmp_path, method, bits, group_size)
    config = quantization_config(method, bits, group_size)
    set_key(config, path, value)
    change_config(stored, quantization_config=config)
    with pytest.raises(UnsupportedModelError) as caught:
        make_engine(stored)
    message = str(caught.value)
    assert "quantization_config." + path.replace("/", ".") in message
    assert repr(value) in message or str(value) in message


@pytest.mark.parametrize("value", [5, "gptq", [1], True])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, value: object) -> None:
    stored, _ = write_stored(tmp_path, "gptq", 4, 64)
    change_config(stored, quantization_config=value)
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        make_engine(stored)


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("method", "change", "parts"),
    [
        ("gptq", lambda t: t.pop(f"{Q}.scales"), [f"{Q}.scales", "is missing"]),
        ("gptq", lambda t: t.pop(f"{Q}.qzeros"), [f"{Q}.qzeros", "is missing"]),
        ("gptq", lambda t: t.pop(f"{Q}.qweight"), [f"{Q}.weight", "is missing"]),
        ("gptq", lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"][1:].clone()}),
         [f"{Q}.qweight", "has shape [15, 128]", "asks for [16, 128]"]),
        ("gptq", lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"].float()}),
         [f"{Q}.qweight", "float32", "supported: int32"]),
        ("gptq", lambda t: t[f"{Q}.qzeros"].add_(1), [f"{Q}.qzeros", "asymmetric", "not 7"]),
        ("gptq", lambda t: t.update({f"{Q}.g_idx": t[f"{Q}.g_idx"].flip(0)}),
         [f"{Q}.g_idx", "desc_act"]),
        ("gptq", lambda t: t[f"{Q}.scales"][0, 3:4].fill_(float("inf")),
         [f"{Q}.scales", "not finite"]),
        ("awq", lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].double()}),
         [f"{Q}.scales", "float64", "bfloat16 or float16 or float32"]),
        ("awq", lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"][:1].clone()}),
         [f"{Q}.qzeros", "has shape [1, 16]", "asks for [2, 16]"]),
        ("awq", lambda t: t.update({f"{Q}.extra": torch.zeros(1)}), [f"{Q}.extra", "not know"]),
        ("compressed-tensors", lambda t: t[f"{Q}.weight_shape"].add_(1),
         [f"{Q}.weight_shape says [129, 129]", "[128, 128]"]),
        ("compressed-tensors", lambda t: t.update({f"{Q}.weight_zero_point": torch.zeros(1)}),
         [f"{Q}.weight_zero_point"]),
        ("compressed-tensors", lambda t: t.update({f"{Q}.weight_g_idx": torch.zeros(1)}),
         [f"{Q}.weight_g_idx"]),
        ("compressed-tensors",
         lambda t: t.update({f"{Q}.weight_scale": t[f"{Q}.weight_scale"][:, :1].clone()}),
         [f"{Q}.weight_scale", "has shape [128, 1]", "asks for [128, 2]"]),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, method: str, change: Change, parts: list[str]
) -> None:
    stored, _ = write_stored(tmp_path, method, 4, 64)
    tensors = load_file(stored / FILE)
    change(tensors)
    save_file(tensors, stored / FILE)
    with pytest.raises(ConfigError) as caught:
        make_engine(stored)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_the_wrong_version_of_zeros_is_refused(tmp_path: Path) -> None:
    """Read as version 2, a version 1 file would be off by one throughout."""
    stored, _ = write_stored(tmp_path, "gptq", 4, 64)
    config = {**quantization_config("gptq", 4, 64), "checkpoint_format": "gptq_v2"}
    change_config(stored, quantization_config=config)
    with pytest.raises(ConfigError, match="qzeros is not 8 throughout"):
        make_engine(stored)


def test_half_of_a_stacked_matrix_is_refused(tmp_path: Path) -> None:
    stored, _ = write_stored(tmp_path, "gptq", 4, 64, plain=("embed", "lm_head", "k_proj"))
    with pytest.raises(ConfigError, match="only 2 are quantized; supported: all or none"):
        make_engine(stored)


def test_rows_of_no_whole_groups_are_refused(tmp_path: Path) -> None:
    stored, _ = write_stored(tmp_path, "gptq", 4, 64)
    config = {**quantization_config("gptq", 4, 64), "group_size": 128}
    change_config(stored, quantization_config=config, intermediate_size=320)
    with pytest.raises(ConfigError, match=r"q_proj.qzeros has shape"):
        make_engine(stored)
    own = StoredFormat("gptq", 4, 128, zero_offset=1)
    with (
        Checkpoint(stored, torch.float32) as checkpoint,
        pytest.raises(ConfigError, match=r"\[128, 320\] has rows of no whole groups of 128"),
    ):
        take_quantized(checkpoint, own, "model.layers.0.mlp.down_proj", 128, 320)


def test_scales_of_several_types_are_stacked_exactly(tmp_path: Path) -> None:
    stored, meant = write_stored(tmp_path, "gptq", 4, 64, torch.float16)
    tensors = load_file(stored / FILE)
    tensors[f"{Q}.scales"] = tensors[f"{Q}.scales"].float()
    save_file(tensors, stored / FILE)
    engine = make_engine(stored, kernels="reference")
    weight = engine.runner.model.layers[0].qkv.weight
    assert isinstance(weight, QuantizedWeight) and weight.scales.dtype is torch.float32
    assert distance(engine, make_engine(meant, kernels="reference")) <= 1e-4
