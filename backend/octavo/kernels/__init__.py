"""The operators of the decode loop. They know tensors and numbers, never sequences or configs.

Each op is stated in `reference` or `reference_kv` in plain torch: specification, oracle of the
tests and last-resort fallback. Faster implementations are chosen here, under the same names.
"""

from torch import Tensor

from octavo.kernels import onednn, reference
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
)
from octavo.kernels.reference_kv import paged_attention, store_kv

__all__ = [
    "MIN_BLOCK_SIZE",
    "add_rms_norm",
    "apply_rope",
    "apply_softcap",
    "gelu_tanh_mul",
    "greedy",
    "linear",
    "pack_linear",
    "paged_attention",
    "penalize",
    "rms_norm",
    "sample",
    "silu_mul",
    "store_kv",
]

# Tokens of a block. Matrix units multiply tiles of 16 rows (tensor cores, AMX): a kernel that reads
# smaller blocks fills its tiles in part or from several places. `reference_kv` has no such least.
MIN_BLOCK_SIZE = 16


def pack_linear(weight: Tensor) -> Tensor:
    """weight [out, in] in the layout that `linear` reads fastest here; maybe itself."""
    return onednn.pack(weight) if onednn.can_pack(weight) else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, in], weight [out, in] plain or from `pack_linear`, bias [out] → [T, out]."""
    chosen = onednn.linear if weight.is_mkldnn else reference.linear
    return chosen(x, weight, bias)
