"""The operators of the decode loop. They know tensors and numbers, never sequences or configs.

Each op is stated in `reference`, `reference_kv` or `reference_weights` in plain torch:
specification, oracle of the tests and last-resort fallback. The native ones of the CPU are in
`cpu`: the same operators, and a whole step of a decoder in one call.
"""

import torch
from torch import Tensor

from octavo.kernels import reference, reference_weights
from octavo.kernels.operators import PackedWeight
from octavo.kernels.reference import (
    add_rms_norm,
    apply_rope,
    apply_softcap,
    gelu_tanh_mul,
    greedy,
    penalize,
    rms_norm,
    sample,
    silu_mul,
    uniform_numbers,
)
from octavo.kernels.reference_kv import (
    gather_blocks,
    paged_attention,
    rope_and_store,
    scatter_blocks,
    store_kv,
)
from octavo.kernels.reference_weights import QuantizedWeight, quantize_weight

__all__ = [
    "MIN_BLOCK_SIZE",
    "PackedWeight",
    "QuantizedWeight",
    "add_rms_norm",
    "apply_rope",
    "apply_softcap",
    "gather_blocks",
    "gelu_tanh_mul",
    "greedy",
    "linear",
    "pack",
    "paged_attention",
    "penalize",
    "quantize_weight",
    "rms_norm",
    "rope_and_store",
    "sample",
    "scatter_blocks",
    "silu_mul",
    "store_kv",
    "uniform_numbers",
]

# Tokens of a block. Matrix units multiply tiles of 16 rows (tensor cores, AMX): a kernel that reads
# smaller blocks fills its tiles in part or from several places. `reference_kv` has no such least.
MIN_BLOCK_SIZE = 16


def pack(weight: Tensor | QuantizedWeight, dtype: torch.dtype) -> PackedWeight:
    """weight [out, in] as `linear` reads it, for inputs of `dtype`: here, as it is."""
    return weight


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [T, in], weight [out, in], bias [out] → [T, out]."""
    assert isinstance(weight, Tensor | QuantizedWeight), "packed for other kernels"
    if isinstance(weight, QuantizedWeight):
        return reference_weights.linear_quantized(x, weight, bias)
    return reference.linear(x, weight, bias)
