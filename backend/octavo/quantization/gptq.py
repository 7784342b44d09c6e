"""GPTQ (Frantar et al., 2022): columns are rounded one after the other, and what each was rounded
by is made up for by those that are still to come, as far as the inputs seen go together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from octavo.kernels import QuantizedWeight, quantize_weight

# Columns whose corrections are made at once to all that follow; whole groups.
_BLOCK = 128
# Of these, columns that see each other's at once; the others of the block wait for a product.
_STEP = 32
# Of the Hessian's mean diagonal, added to it; ten times more where it still has no inverse.
_DAMPING = 0.01
# Columns of a Hessian that are summed together: what lies below its diagonal is the mirror's.
_STRIPE = 512


class Hessian:
    """Of the squared error of a product by its weights: the sum of x · xᵀ over inputs x [in],
    but for a factor that does not matter."""

    def __init__(self, width: int) -> None:
        self._upper = torch.zeros(width, width)

    def add(self, x: Tensor) -> None:
        """x [T, in] float32."""
        for begin in range(0, x.shape[1], _STRIPE):
            rows = slice(begin, begin + _STRIPE)
            self._upper[rows, begin:].addmm_(x[:, rows].T, x[:, begin:])

    @property
    @torch.inference_mode()
    def sum(self) -> Tensor:
        """[in, in], symmetric; memory that `add` goes on with."""
        own = self._upper
        for begin in range(_STRIPE, own.shape[0], _STRIPE):
            own[begin:, begin - _STRIPE : begin] = own[begin - _STRIPE : begin, begin:].T
        return own


def quantize_gptq(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int | None
) -> QuantizedWeight:
    """weight [out, in], hessian [in, in], both float32 and finite; neither is changed. Rows do not
    depend on each other: matrices that share their input may come as one, which is faster.

    Scales are those of `quantize_weight`: of a row as it is given, of a group as it is when its
    first column's turn comes. An input that was never seen is rounded to the nearest.
    """
    out, width = weight.shape
    assert hessian.shape == (width, width) and (group_size is None or _BLOCK % group_size == 0)
    factor = _inverse_factor(hessian)
    columns = weight.T.contiguous()  # each side by side: a column's turn is a row of it
    stored = torch.empty(width, out, dtype=torch.int8)
    least, most = (-8.0, 7.0) if bits == 4 else (-127.0, 127.0)
    scales: list[Tensor] = []
    if group_size is None:
        scales.append(quantize_weight(weight, bits, None, False).scales)
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        errors = torch.empty(end - begin, out)
        with _one_thread():
            for first in range(begin, end, _STEP):
                behind = min(first + _STEP, end)
                if group_size is not None and first % group_size == 0:
                    group = columns[first : first + group_size].T.contiguous()
                    scales.append(quantize_weight(group, bits, group_size, False).scales)
                scale = scales[-1][:, 0].float()
                own = errors[first - begin : behind - begin]
                part = factor[first:behind, first:behind]
                stored[first:behind] = _round_columns(
                    columns[first:behind], part, scale, least, most, own
                )
                columns[behind:end].addmm_(factor[first:behind, behind:end].T, own, alpha=-1)
        columns[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return QuantizedWeight(stored.T.contiguous(), torch.cat(scales, 1), group_size, False, bits)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For many small operations: a second thread gains them little and, where another process has
    its core, costs each a time slice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _round_columns(
    columns: Tensor, factor: Tensor, scale: Tensor, least: float, most: float, errors: Tensor
) -> Tensor:
    """columns [n, out], which are used up; factor [n, n] of theirs; scale [out] → numbers [n, out]
    float32, and in `errors` [n, out] what is to be shared out to all behind them."""
    divisor = scale.masked_fill(scale == 0, 1.0)
    numbers = torch.empty_like(columns)
    for index in range(len(columns)):
        column, number, error = columns[index], numbers[index], errors[index]
        torch.div(column, divisor, out=number).round_().clamp_(least, most)
        torch.addcmul(column, number, scale, value=-1, out=error).div_(factor[index, index])
        columns[index + 1 :].addr_(factor[index, index + 1 :], error, alpha=-1)
    return numbers


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
