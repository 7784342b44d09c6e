"""RMSNorm, alone and behind the residual's sum: one program a row, which is read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST = 16384


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., N], weight [N] or a row for each of x's second to last dimension → [..., N]."""
    return _norm(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual). All [T, N]; `residual` is overwritten by the sum."""
    assert x.shape == residual.shape and x.dtype is residual.dtype, (x.shape, residual.shape)
    assert x.dim() == 2 and residual.stride(1) == 1
    return _norm(x, residual, weight, eps), residual


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    width = x.shape[-1]
    assert weight.shape in (x.shape[-1:], x.shape[-2:]) and weight.is_contiguous(), weight.shape
    assert width <= _WIDEST, f"rows of {width} numbers; at most {_WIDEST}"
    rows = x.reshape(-1, width)
    assert rows.stride(1) == 1
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if len(rows) == 0:
        return out
    block = triton.next_power_of_2(width)
    _norm_kernel[(len(rows),)](
        rows, residual, weight, out, rows.stride(0),
        0 if residual is None else residual.stride(0), weight.numel() // width, width, eps,
        ADDS=residual is not None, BLOCK=block, num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return out


@triton.jit
def _norm_kernel(
    x, residual, weights, out, x_stride, residual_stride, num_weights, width, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    numbers = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    if ADDS:
        place = residual + row * residual_stride + columns
        before = tl.load(place, mask=inside, other=0.0)
        numbers = (before.to(tl.float32) + numbers.to(tl.float32)).to(before.dtype)
        tl.store(place, numbers, mask=inside)
    weight = tl.load(weights + (row % num_weights) * width + columns, mask=inside, other=0.0)
    wide = numbers.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    # The product is taken in weight's type: see reference.rms_norm.
    normed = (wide * scale).to(weight.dtype).to(tl.float32) * weight.to(tl.float32)
    normed = normed.to(weight.dtype).to(out.dtype.element_ty)
    tl.store(out + row * width + columns, normed, mask=inside)
