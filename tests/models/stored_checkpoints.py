"""Writes quantized checkpoints number by number, as each format's own documentation lays them
out; nothing here is shared with what reads them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factories import write_checkpoint

FILE = "model.safetensors"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_words(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """numbers [rows, n] from 0 up → int32 [rows, ⌈n · bits / 32⌉], the first in the lowest bits."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    words = torch.zeros(len(numbers), -(-numbers.shape[1] // per_word), dtype=torch.int64)
    for column in range(numbers.shape[1]):
        word, place = divmod(column, per_word)
        words[:, word] |= numbers[:, column].long() << bits * order.index(place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


class Stored:
    """Random numbers of one matrix [out, width] in a format, its tensors, and what they mean."""

    def __init__(
        self,
        method: str,
        bits: int,
        group_size: int | None,
        shape: tuple[int, int],
        scale_dtype: torch.dtype,
        generator: torch.Generator,
    ) -> None:
        out, width = shape
        groups = width // group_size if group_size else 1
        numbers = torch.randint(0, 1 << bits, shape, generator=generator)
        spread = 0.15 / (1 << (bits - 2))
        scales = torch.rand(out, groups, generator=generator) * spread + spread / 4
        scales = scales.to(scale_dtype)
        zeros = torch.full((out, groups), 1 << (bits - 1))
        if method == "awq":
            zeros = torch.randint(0, 16, (out, groups), generator=generator)
        length = width // groups
        centred = numbers - zeros.repeat_interleave(length, 1)
        self.meaning = (centred.double() * scales.double().repeat_interleave(length, 1)).float()
        if method == "compressed-tensors":
            self.tensors = {
                "weight_packed": pack_words(numbers, bits),
                "weight_scale": scales,
                "weight_shape": torch.tensor(shape),
            }
        elif method == "w8a8":
            self.tensors = {"weight": centred.to(torch.int8), "weight_scale": scales}
        elif method == "awq":
            self.tensors = {
                "qweight": pack_words(numbers.T, 4, AWQ_ORDER),
                "qzeros": pack_words(zeros.T, 4, AWQ_ORDER),
                "scales": scales.T.contiguous(),
            }
        else:
            offset = 1 if method == "gptq" else 0
            self.tensors = {
                "qweight": pack_words(numbers, bits).T.contiguous(),
                "qzeros": pack_words(zeros.T - offset, bits),
                "scales": scales.T.contiguous(),
                "g_idx": (torch.arange(width) // length).to(torch.int32),
            }


def quantization_config(method: str, bits: int, group_size: int | None) -> dict[str, Any]:
    if method == "awq":
        return {
            "quant_method": "awq", "bits": bits, "group_size": group_size or -1,
            "zero_point": True, "version": "gemm", "modules_to_not_convert": None,
        }  # fmt: skip
    if method.startswith("gptq"):
        return {
            "quant_method": "gptq", "bits": bits, "group_size": group_size or -1, "sym": True,
            "desc_act": False, "checkpoint_format": method, "damp_percent": 0.01,
        }  # fmt: skip
    is_w8a8 = method == "w8a8"
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "actorder": None,
        "strategy": "group" if group_size else "channel", "group_size": group_size,
    }  # fmt: skip
    inputs = {
        "num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token",
    }  # fmt: skip
    group = {
        "targets": ["Linear"], "weights": weights, "output_activations": None,
        "input_activations": inputs if is_w8a8 else None,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "format": "int-quantized" if is_w8a8 else "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }  # fmt: skip


def write_stored(
    folder: Path,
    method: str,
    bits: int,
    group_size: int | None,
    scale_dtype: torch.dtype = torch.float16,
    plain: tuple[str, ...] = ("lm_head", "embed_tokens"),
    **overrides: Any,
) -> tuple[Path, Path]:
    """Two folders of the toy model: its matrices in the format, and in float32 what they mean.
    Those whose names hold one of `plain` are left alone."""
    sizes = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 32, **overrides}
    stored, meant = (write_checkpoint(folder / part, **sizes) for part in ("stored", "meant"))
    tensors = load_file(meant / FILE)
    kept, meaning = dict(tensors), dict(tensors)
    generator = torch.Generator().manual_seed(bits)
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or any(part in name for part in plain):
            continue
        shape = (tensor.shape[0], tensor.shape[1])
        own = Stored(method, bits, group_size, shape, scale_dtype, generator)
        del kept[name]
        stem = name.removesuffix("weight")
        kept |= {stem + part: each.contiguous() for part, each in own.tensors.items()}
        meaning[name] = own.meaning
    save_file(kept, stored / FILE)
    save_file(meaning, meant / FILE)
    change_config(stored, quantization_config=quantization_config(method, bits, group_size))
    return stored, meant


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")
