"""act(gate) · up, with gate and up side by side. Computed in float32 and rounded once, where the
reference rounds the activation too."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) · up: x [T, 2·N] → [T, N]."""
    return _gated(x, is_silu=True)


def gelu_tanh_mul(x: Tensor) -> Tensor:
    """gelu(gate) · up by gelu's tanh form: x [T, 2·N] → [T, N]."""
    return _gated(x, is_silu=False)


def _gated(x: Tensor, *, is_silu: bool) -> Tensor:
    assert x.dim() == 2 and x.shape[1] % 2 == 0 and x.stride(1) == 1, x.shape
    rows, width = len(x), x.shape[1] // 2
    out = x.new_empty(rows, width)
    if rows:
        _gated_kernel[rows, triton.cdiv(width, _BLOCK)](
            x, out, x.stride(0), width, IS_SILU=is_silu, BLOCK=_BLOCK
        )
    return out


@triton.jit
def _gated_kernel(x, out, stride, width, IS_SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    if IS_SILU:
        activated = gate * tl.sigmoid(gate)
    else:
        # gelu(x) = x/2 · (1 + tanh y) = x · sigmoid(2 y), with y = √(2/π) · (x + 0.044715 x³).
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        activated = gate * tl.sigmoid(2 * inner)
    tl.store(out + row * width + columns, (activated * up).to(out.dtype.element_ty), mask=inside)
