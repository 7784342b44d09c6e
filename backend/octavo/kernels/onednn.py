"""Matrix products with weights packed once into oneDNN's blocked layout.

A plain bf16 weight is read at about half the memory's speed when few rows meet it: measured on
2 cores of an AMD EPYC (Zen 5) with 16 rows, [5632, 1024]: 18.8 GB/s plain, 32.6 GB/s packed.
On Intel with AMX the two were equal.
"""

import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def can_pack(weight: Tensor) -> bool:
    """Whether this build and CPU multiply packed weights of this kind. float32 stays plain: it
    is there to be compared with, and so keeps the arithmetic of every other plain product."""
    if weight.dtype is not torch.bfloat16 or weight.device.type != "cpu":
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError) as exc:
        log.warning("bf16 weights stay unpacked, at about half the speed: %s", exc)
        return False


def pack(weight: Tensor) -> Tensor:
    """weight [out, in] → the same, opaque to all but `linear` (`is_mkldnn` is true)."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)  # type: ignore[no-any-return]


def linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, in], packed [out, in], bias [out] → [T, out]."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]
