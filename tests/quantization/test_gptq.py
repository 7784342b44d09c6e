"""GPTQ: nearer than rounding on inputs that it has not seen, and rounding where nothing goes
together."""

import pytest
import torch
from torch import Tensor

from octavo.kernels import QuantizedWeight, quantize_weight
from octavo.kernels.reference_weights import dequantize_weight
from octavo.quantization.gptq import Hessian, quantize_gptq

KINDS = pytest.mark.parametrize(
    ("bits", "group_size"), [(4, 32), (4, 64), (4, 128), (8, None), (8, 64), (4, None)]
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, width: int, seed: int) -> Tensor:
    """Numbers that go together, as activations do: few directions, and some noise."""
    mixing = random(width // 8, width, seed=99)
    return random(rows, width // 8, seed=seed) @ mixing + 0.3 * random(rows, width, seed=seed + 1)


def hessian_of(x: Tensor) -> Tensor:
    hessian = Hessian(x.shape[1])
    for part in x.split(100):
        hessian.add(part)
    return hessian.sum


def error(own: QuantizedWeight, weight: Tensor, x: Tensor) -> float:
    return float(((dequantize_weight(own) - weight) @ x.T).norm() / (weight @ x.T).norm())


@KINDS
@pytest.mark.parametrize("width", [128, 384])
def test_it_is_nearer_than_rounding(bits: int, group_size: int | None, width: int) -> None:
    weight, seen, unseen = random(96, width), inputs(1000, width, 1), inputs(500, width, 7)
    own = quantize_gptq(weight, hessian_of(seen), bits, group_size)
    rounded = quantize_weight(weight, bits, group_size, False)
    # Measured: 0.26 to 0.30 of it.
    assert error(own, weight, unseen) < 0.5 * error(rounded, weight, unseen)
    assert own.stored.shape == rounded.stored.shape and own.stored.dtype is torch.int8
    assert own.scales.shape == rounded.scales.shape and own.scales.dtype is rounded.scales.dtype
    assert (own.bits, own.group_size) == (bits, group_size)
    least, most = (-8, 7) if bits == 4 else (-127, 127)
    assert least <= own.stored.min() and own.stored.max() <= most


@KINDS
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_inputs_that_do_not_go_together_are_rounded(
    bits: int, group_size: int | None, scale: float
) -> None:
    """Also those that were never seen."""
    weight = random(40, 256)
    own = quantize_gptq(weight, torch.eye(256) * scale, bits, group_size)
    rounded = quantize_weight(weight, bits, group_size, False)
    assert torch.equal(own.stored, rounded.stored) and torch.equal(own.scales, rounded.scales)


def test_inputs_that_are_the_same_share_their_error() -> None:
    """Two columns with one input: only their sum counts, and the second makes up for the first."""
    x = random(200, 1).repeat(1, 32)
    weight = random(64, 32)
    own = quantize_gptq(weight, hessian_of(x), 4, 32)
    rounded = quantize_weight(weight, 4, 32, False)
    # Measured: 0.2. The last of all has nothing behind it that makes up for it.
    assert error(own, weight, x) < 0.3 * error(rounded, weight, x)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_fewer_inputs_than_columns_are_enough(rows: int) -> None:
    x, weight = random(rows, 256, seed=3) * 1e3, random(30, 256)
    own = quantize_gptq(weight, hessian_of(x), 4, 64)
    assert own.scales.isfinite().all()
    assert error(own, weight, x) < 0.5 * error(quantize_weight(weight, 4, 64, False), weight, x)


def test_an_unseen_input_beside_seen_ones() -> None:
    x, weight = inputs(300, 128, 1), random(30, 128)
    x[:, 17] = 0
    own = quantize_gptq(weight, hessian_of(x), 8, None)
    assert ((dequantize_weight(own) - weight)[:, 17].abs() <= own.scales[:, 0] * 0.501).all()


def test_what_is_given_stays() -> None:
    weight, hessian = random(8, 64), hessian_of(inputs(100, 64, 1))
    before = weight.clone(), hessian.clone()
    quantize_gptq(weight, hessian, 4, 32)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


def test_zeros_stay_zeros() -> None:
    own = quantize_gptq(torch.zeros(5, 64), hessian_of(inputs(100, 64, 1)), 4, 32)
    assert not own.stored.any() and not own.scales.any()
