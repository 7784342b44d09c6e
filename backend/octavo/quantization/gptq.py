"""GPTQ (Frantar et al., 2022): columns are rounded one after the other, and what each was rounded
by is made up for by those that are still to come, as far as the inputs seen go together."""

import torch
from torch import Tensor

from octavo.kernels import QuantizedWeight, quantize_weight

# Columns whose corrections are made at once to all that follow; whole groups.
_BLOCK = 128
# Of the Hessian's mean diagonal, added to it; ten times more where it still has no inverse.
_DAMPING = 0.01


class Hessian:
    """Of the squared error of a product by its weights: the sum of x · xᵀ over inputs x [in],
    but for a factor that does not matter."""

    def __init__(self, width: int) -> None:
        self.sum = torch.zeros(width, width)

    def add(self, x: Tensor) -> None:
        """x [T, in] float32."""
        self.sum.addmm_(x.T, x)


def quantize_gptq(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int | None
) -> QuantizedWeight:
    """weight [out, in], hessian [in, in], both float32 and finite; neither is changed.

    Scales are those of `quantize_weight`: of a row as it is given, of a group as it is when its
    first column's turn comes. An input that was never seen is rounded to the nearest.
    """
    out, width = weight.shape
    assert hessian.shape == (width, width) and (group_size is None or _BLOCK % group_size == 0)
    weight, factor = weight.clone(), _inverse_factor(hessian)
    stored = torch.empty(out, width, dtype=torch.int8)
    least, most = (-8, 7) if bits == 4 else (-127, 127)
    all_scales: list[Tensor] = []
    if group_size is None:
        all_scales.append(quantize_weight(weight, bits, None, False).scales)
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        block, own = weight[:, begin:end].clone(), factor[begin:end, begin:end]
        errors = torch.empty_like(block)
        for column in range(end - begin):
            if group_size is not None and column % group_size == 0:
                group = block[:, column : column + group_size].contiguous()
                all_scales.append(quantize_weight(group, bits, group_size, False).scales)
            scale = all_scales[-1][:, 0].float()
            divisor = scale.masked_fill(scale == 0, 1.0)
            number = (block[:, column] / divisor).round().clamp(least, most)
            stored[:, begin + column] = number.to(torch.int8)
            error = (block[:, column] - number * scale) / own[column, column]
            block[:, column:] -= error[:, None] * own[column, column:]
            errors[:, column] = error
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return QuantizedWeight(stored, torch.cat(all_scales, 1), group_size, False, bits)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: in row k, how column k's error is shared out to
    those behind it once all before it are fixed."""
    mean = hessian.diagonal().mean()
    unseen = hessian.diagonal() == 0
    damping = float(_DAMPING * mean) or 1.0
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping)
        damped.diagonal()[unseen] += mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower, out=damped)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and factor.isfinite().all():
                return factor
        assert damping < 1e6 * mean, "a Hessian that no damping makes positive"
        damping *= 10
