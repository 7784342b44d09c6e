"""Writes quantized matrices as compressed-tensors does, in the layout that it calls
pack-quantized; `models.quantized_checkpoint` reads it."""

from typing import Any

import torch
from torch import Tensor

from octavo.kernels import QuantizedWeight


def packed_tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of the matrix `name`. Numbers and scales are those of `weight`: its scales may
    be negative, which a product does not mind."""
    stored, bits = weight.stored, weight.bits
    out, width = stored.shape
    assert width * bits % 32 == 0, (width, bits)
    numbers = (stored.view(torch.uint8) + (1 << (bits - 1))).view(out, -1, 8 // bits)
    in_bytes = numbers[..., 0].clone() if bits == 8 else numbers[..., 0] | numbers[..., 1] << 4
    return {
        f"{name}.weight_packed": in_bytes.contiguous().view(torch.int32),
        f"{name}.weight_scale": weight.scales.contiguous(),
        f"{name}.weight_shape": torch.tensor([out, width]),
    }


def quantization_config(bits: int, group_size: int | None) -> dict[str, Any]:
    """For config.json. The lm_head is left as it was."""
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "actorder": None,
        "strategy": "group" if group_size else "channel", "group_size": group_size,
        "block_structure": None, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    group = {
        "targets": ["Linear"], "weights": weights,
        "input_activations": None, "output_activations": None,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "global_compression_ratio": None,
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip
