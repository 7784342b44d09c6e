"""Quantized weights in plain torch: how they are rounded, and what a product with them is.

Letters in shapes: T tokens, G groups of a row of weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows that are rounded together: few, so that what that takes in float32 stays in the cache.
_ROWS_AT_ONCE = 64
# A group's scale is its largest weight over one of these; the best by squared error is taken.
# Under 8 the largest fills the range −8 to 7; under more it is clipped, for finer steps.
_DIVISORS_4_BIT = (8.0, 8.5, 9.0)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix [out, in] of numbers stored · scale.

    stored: [out, in] int8; those of 4 bits are −8 to 7, one a byte
    scales: [out, G] bfloat16, or float16 or float32 as a checkpoint has them, each of
        `group_size` numbers side by side, of either sign; or [out, 1] float32 where that is None
    quantized_activations: whether its input is quantized too, see `linear_quantized`
    """

    stored: Tensor
    scales: Tensor
    group_size: int | None
    quantized_activations: bool
    bits: int

    @classmethod
    def stack(cls, parts: Sequence["QuantizedWeight"]) -> "QuantizedWeight":
        """Matrices of one format that share their input, one above the other."""
        return replace(
            parts[0],
            stored=torch.cat([part.stored for part in parts]),
            scales=torch.cat([part.scales for part in parts]),
        )

    def split(self, outs: Sequence[int]) -> Iterator["QuantizedWeight"]:
        """The matrices of so many rows each that `stack` would make this of."""
        parts = (torch.split(own, list(outs)) for own in (self.stored, self.scales))
        for stored, scales in zip(*parts, strict=True):
            yield replace(self, stored=stored, scales=scales)


def quantize_weight(
    weight: Tensor, bits: int, group_size: int | None, quantized_activations: bool
) -> QuantizedWeight:
    """weight [out, in], finite, rounded to the nearest of `bits`, 4 or 8, symmetric around 0.

    Weights are divided by the scale as it is stored, so that its rounding costs nothing. A group
    or row of zeros has the scale 0.
    """
    assert weight.dim() == 2 and bits in (4, 8)
    out, width = weight.shape
    length = group_size or width
    assert width % length == 0
    device = weight.device
    scale_dtype = torch.float32 if group_size is None else torch.bfloat16
    stored = torch.empty(out, width // length, length, dtype=torch.int8, device=device)
    scales = torch.empty(out, width // length, dtype=scale_dtype, device=device)
    for begin in range(0, out, _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        groups = weight[rows].float().view(-1, width // length, length)
        stored[rows], scales[rows] = _round_groups(groups, bits, scale_dtype)
    return QuantizedWeight(stored.view(out, width), scales, group_size, quantized_activations, bits)


def _round_groups(groups: Tensor, bits: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """groups [..., length] float32 → stored [..., length], float32, and scales [...]."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    if bits == 8:
        scales = (largest.abs() / 127).to(scale_dtype)
        return _round(groups, scales, -127, 127), scales.squeeze(-1)
    candidates = [(largest / -divisor).to(scale_dtype) for divisor in _DIVISORS_4_BIT]
    errors = [
        _round(groups, scales, -8, 7).mul_(scales.float()).sub_(groups).square_().sum(-1, True)
        for scales in candidates
    ]
    best = torch.cat(errors, -1).argmin(-1, keepdim=True)
    scales = torch.cat(candidates, -1).gather(-1, best)
    return _round(groups, scales, -8, 7), scales.squeeze(-1)


def _round(groups: Tensor, scales: Tensor, least: int, most: int) -> Tensor:
    divisor = scales.float()
    return (groups / divisor.masked_fill(divisor == 0, 1.0)).round_().clamp_(least, most)


def dequantize_weight(weight: QuantizedWeight) -> Tensor:
    """→ [out, in] float32. Exact where scales have 16 bits."""
    groups = weight.stored.float().view(*weight.scales.shape, -1)
    return groups.mul_(weight.scales.float().unsqueeze(-1)).flatten(1)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, in] → stored [T, in] int8 and scales [T] float32, with scale = max |x| / 127.

    A row of zeros has the scale 0. What is not finite makes its row's scale so.
    """
    wide = x.float()
    scales = wide.abs().amax(-1) / 127
    quotient = wide / scales.masked_fill(scales == 0, 1.0).unsqueeze(-1)
    # ∞ / ∞ is NaN, which no int8 can hold; the scale tells of it.
    return quotient.round_().clamp_(-127, 127).nan_to_num_(0.0).to(torch.int8), scales


def linear_quantized(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """x [T, in], bias [out] → [T, out] of x's type, which is rounded to once, at the end.

    With a quantized input: the integer products of each group, exact, times the group's scale,
    summed in float32, times the row's scale. Otherwise the products of x itself with the weights
    that `dequantize_weight` gives, summed in float32.
    """
    if weight.quantized_activations:
        products = _integer_products(x, weight)
    else:
        products = F.linear(x.float(), dequantize_weight(weight))
    if bias is not None:
        products += bias.float()
    return products.to(x.dtype)


def _integer_products(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x [T, in] → [T, out] float32."""
    rows, row_scales = quantize_rows(x)
    # In float64 every sum of such products is exact. [G, T, length] by [G, length, out].
    num_groups, length = weight.scales.shape[1], weight.group_size or x.shape[1]
    left, right = (
        numbers.double().view(-1, num_groups, length).movedim(1, 0)
        for numbers in (rows, weight.stored)
    )
    sums = torch.matmul(left, right.mT).float()
    of_groups = sums.mul_(weight.scales.float().T.unsqueeze(1))
    return of_groups.sum(0).mul_(row_scales.unsqueeze(-1))
