"""Decoders with quantized weights: what they hold, and logits against the unquantized ones."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factories import TOY_CONFIG, make_engine, random_prompts, write_checkpoint, write_family
from octavo.engine import Engine
from octavo.errors import ConfigError
from octavo.kernels import QuantizedWeight
from octavo.kernels.reference_weights import dequantize_weight, quantize_weight
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import WeightFormat, matrix_format, weight_format
from tests.models.logits import our_logits

FORMATS = {
    "int8": {"weight_format": "int8"},
    "int4": {"weight_format": "int4", "weight_group_size": 32},
    "w8a8": {"weight_format": "w8a8"},
    "w4a8": {"weight_format": "w4a8", "weight_group_size": 32},
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
}


def own_format(name: str) -> WeightFormat:
    settings = FORMATS[name]
    return weight_format(name, int(settings.get("weight_group_size", 128)), "float32")


def rounded(tensors: dict[str, Tensor], own: WeightFormat) -> dict[str, Tensor]:
    """A checkpoint of what `own` makes of another one, its lm_head always apart."""
    tensors = {HEAD: tensors[EMBEDDING], **tensors}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name != EMBEDDING:
            each = matrix_format(own, "lm_head" if name == HEAD else "layer")
            stored = quantize_weight(tensor, each.weight_bits, each.group_size, False)
            tensors[name] = dequantize_weight(stored)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def distance(got: Engine, expected: Engine) -> float:
    """Of the logits of some prompts, relative to their size."""
    pairs = [
        (our_logits(got, prompt, 16), our_logits(expected, prompt))
        for prompt in random_prompts([1, 30, 90])
    ]
    mine, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_with_the_rounded_weights(name: str, variant: str, tmp_path: Path) -> None:
    overrides = VARIANTS[variant]
    folder = write_checkpoint(tmp_path / "toy", **overrides)
    other = write_checkpoint(tmp_path / "rounded", **{**overrides, "tie_word_embeddings": False})
    tensors = load_file(folder / "model.safetensors")
    save_file(rounded(tensors, own_format(name)), other / "model.safetensors")
    engine = make_engine(folder, **FORMATS[name])
    assert distance(engine, make_engine(other)) <= 1e-5
    assert distance(engine, make_engine(folder)) > 1e-2


def test_matrices_that_the_checkpoint_has_stacked(tmp_path: Path) -> None:
    write_family(tmp_path / "toy", "Phi3ForCausalLM")
    write_family(tmp_path / "rounded", "Phi3ForCausalLM")
    tensors = load_file(tmp_path / "toy" / "model.safetensors")
    assert "model.layers.0.self_attn.qkv_proj.weight" in tensors
    save_file(rounded(tensors, own_format("int8")), tmp_path / "rounded" / "model.safetensors")
    engine = make_engine(tmp_path / "toy", **FORMATS["int8"])
    assert distance(engine, make_engine(tmp_path / "rounded")) <= 1e-5


# Large random weights grow errors that trained ones do not. Measured: 0.025, 0.334, 0.038, 0.334.
BOUNDS = {"int8": 0.05, "int4": 0.45, "w8a8": 0.07, "w4a8": 0.45}


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_near_the_unquantized(name: str, toy_folder: Path) -> None:
    engine, plain = make_engine(toy_folder, **FORMATS[name]), make_engine(toy_folder)
    assert BOUNDS[name] / 4 < distance(engine, plain) < BOUNDS[name]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", ["qkv", "output", "gate_up", "down", "lm_head"])
def test_a_wrong_scale_would_show(name: str, part: str, toy_folder: Path) -> None:
    engine = make_engine(toy_folder, kernels="reference", **FORMATS[name])
    model = engine.runner.model
    for owner in [model] if part == "lm_head" else model.layers:
        linear = getattr(owner, part)
        doubled = replace(linear.weight, scales=2 * linear.weight.scales)
        setattr(owner, part, replace(linear, weight=doubled))
    assert distance(engine, make_engine(toy_folder)) > BOUNDS[name]


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantizing_the_inputs_costs_little_more(name: str, toy_folder: Path) -> None:
    weights_only = make_engine(toy_folder, **FORMATS[name])
    both = make_engine(toy_folder, **FORMATS[name.replace("int", "w") + "a8"])
    assert 5e-3 < distance(both, weights_only) < 0.07


TOY_MATRICES = {"layer": [(128, 64), (64, 64), (320, 64), (64, 160)] * 2, "lm_head": [(512, 64)]}
EMBEDDING_BYTES, NORM_BYTES = 4 * 512 * 64, 4 * 64 * 5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", [*FORMATS, "auto"])
def test_bytes_are_counted_as_they_are_stored(name: str, tied: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", tie_word_embeddings=tied)
    own = weight_format(name, 32, "float32")
    matrices = sum(
        matrix_format(own, role).num_bytes(*shape)  # type: ignore[arg-type]
        for role, shapes in TOY_MATRICES.items()
        for shape in shapes
    )
    model = make_engine(folder, **FORMATS.get(name, {})).runner.model
    assert model.step_weight_bytes == matrices + NORM_BYTES
    shared = tied and name == "auto"
    assert model.num_bytes == model.step_weight_bytes + (0 if shared else EMBEDDING_BYTES)


def test_biases_are_counted(tmp_path: Path) -> None:
    sizes = [
        make_engine(write_checkpoint(tmp_path / str(bias), mlp_bias=bias), **FORMATS["int8"])
        .runner.model.num_bytes
        for bias in (False, True)
    ]  # fmt: skip
    assert sizes[1] - sizes[0] == 2 * 4 * (160 + 160 + 64)


@pytest.mark.parametrize("name", FORMATS)
def test_only_matrices_are_quantized(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", tie_word_embeddings=True)
    model = make_engine(folder, kernels="reference", **FORMATS[name]).runner.model
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(model.embedding, tensors[EMBEDDING])
    assert torch.equal(model.norm, tensors["model.norm.weight"])
    layer = model.layers[1]
    for linear in (layer.qkv, layer.output, layer.gate_up, layer.down, model.lm_head):
        assert isinstance(linear.weight, QuantizedWeight)
        assert linear.weight.quantized_activations == name.endswith("a8")
        expected = 8 if linear is model.lm_head or "8" in name.removesuffix("a8") else 4
        assert linear.weight.bits == expected


def test_a_lm_head_of_16_bits(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", torch_dtype="bfloat16", tie_word_embeddings=True)
    settings = {"dtype": "bfloat16", "kernels": "reference", **FORMATS["int4"]}
    kept, rounded = (
        make_engine(folder, **settings, lm_head_format=own).runner.model
        for own in ("bfloat16", "auto")
    )
    assert not isinstance(kept.lm_head.weight, QuantizedWeight)
    assert isinstance(kept.layers[0].qkv.weight, QuantizedWeight)
    # The one that is kept is the embedding itself; the other is there beside it.
    assert kept.step_weight_bytes - rounded.step_weight_bytes == 512 * (2 * 64 - 64 - 4)
    assert rounded.num_bytes - kept.num_bytes == 512 * (64 + 4)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fault", [float("nan"), float("-inf")])
@pytest.mark.parametrize("tensor", [DOWN, HEAD])
def test_what_is_not_finite_is_refused_by_name(
    name: str, fault: float, tensor: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "toy")
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor][5, 7] = fault
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"tensor {tensor} holds numbers that are not finite"):
        make_engine(folder, **FORMATS[name])
    make_engine(folder)


def test_rows_that_are_no_whole_groups_are_refused_by_name(toy_folder: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"weight_group_size = 64: tensor model\.layers\.0\.mlp\.down_proj\.weight has rows "
        "of 160 weights, which are no whole groups; 32 fits",
    ):
        make_engine(toy_folder, weight_format="w4a8", weight_group_size=64)


@pytest.mark.parametrize("name", FORMATS)
def test_one_matrix_at_a_time_is_unquantized(
    name: str, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a model loads in little more memory than it takes."""
    taken: list[weakref.ref[Tensor]] = []
    take = Checkpoint.take

    def watched(self: Checkpoint, name: str, *shape: int) -> Tensor:
        assert not [ref for ref in taken if ref() is not None]
        tensor = take(self, name, *shape)
        if len(shape) == 2 and name != EMBEDDING:
            taken.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Checkpoint, "take", watched)
    engine = make_engine(toy_folder, **FORMATS[name])
    assert engine.runner.model.layers and not [ref for ref in taken if ref() is not None]
    assert len(taken) == 7 * TOY_CONFIG["num_hidden_layers"] + 1
