"""Norms and activations against their reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo import kernels
from octavo.kernels.gpu.activation import gelu_tanh_mul, silu_mul
from octavo.kernels.gpu.norm import add_rms_norm, rms_norm

# The interpreter is numpy, which warns of what IEEE 754 gives.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts off what a cast to bfloat16 would round.
TYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert got.dtype is expected.dtype and got.shape == expected.shape
    close = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, expected, rtol=close, atol=close)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 80), (5, 1000), (2, 4096), (0, 64)])
def test_norms(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    weight = random(shape[1], dtype=dtype, seed=2)
    assert_near(rms_norm(x, weight, 1e-5), kernels.rms_norm(x, weight, 1e-5))
    own, other = residual.clone(), residual.clone()
    got, kept = add_rms_norm(x, own, weight, 1e-5)
    expected, _ = kernels.add_rms_norm(x, other, weight, 1e-5)
    assert kept is own and torch.equal(own, other), "the sum is rounded as torch rounds it"
    assert_near(got, expected)


@pytest.mark.parametrize("width", [16_384, 16_385])
def test_the_widest_rows(width: int) -> None:
    x, weight = random(1, width, dtype=torch.float16), random(width, dtype=torch.float16, seed=1)
    if width > 16_384:
        with pytest.raises(AssertionError, match="at most 16384"):
            rms_norm(x, weight, 1e-5)
    else:
        assert_near(rms_norm(x, weight, 1e-5), kernels.rms_norm(x, weight, 1e-5))


def test_eps_keeps_small_rows_small() -> None:
    x, weight = 1e-4 * random(3, 80, dtype=torch.float32), torch.ones(80, device=DEVICE)
    assert_near(rms_norm(x, weight, 1e-5), kernels.rms_norm(x, weight, 1e-5))
    assert not rms_norm(torch.zeros_like(x), weight, 1e-5).any()


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_of_wider_tensors(dtype: torch.dtype) -> None:
    wide, residuals = random(5, 200, dtype=dtype), random(5, 170, dtype=dtype, seed=1)
    x, weight = wide[:, 40:120], random(80, dtype=dtype, seed=2)
    assert_near(rms_norm(x, weight, 1e-5), kernels.rms_norm(x, weight, 1e-5))
    before, other = residuals.clone(), residuals[:, 30:110].clone()
    got, _ = add_rms_norm(x, residuals[:, 30:110], weight, 1e-5)
    expected, _ = kernels.add_rms_norm(x, other, weight, 1e-5)
    assert_near(got, expected)
    before[:, 30:110] = other
    assert torch.equal(residuals, before), "what lies beside the rows is not written to"
    assert_near(silu_mul(x), kernels.silu_mul(x))
    assert_near(gelu_tanh_mul(x), kernels.gelu_tanh_mul(x))


@pytest.mark.parametrize("shape", [(160,), (40,), (3, 80), (80, 1)])
def test_a_weight_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    x, weight = random(6, 80, dtype=torch.float32), random(*shape, dtype=torch.float32)
    with pytest.raises(AssertionError):
        rms_norm(x, weight, 1e-5)
    with pytest.raises(AssertionError):
        add_rms_norm(x, x.clone(), weight, 1e-5)


def test_norm_of_heads_takes_a_row_of_weights_for_each() -> None:
    x, weight = random(4, 3, 80, dtype=torch.float16), random(3, 80, dtype=torch.float16, seed=1)
    assert_near(rms_norm(x, weight, 1e-6), kernels.rms_norm(x, weight, 1e-6))


def test_a_float32_weight_keeps_the_product_from_being_rounded_twice() -> None:
    x, weight = random(64, 96, dtype=torch.float16), random(96, dtype=torch.float32, seed=1)
    got, expected = rms_norm(x, weight, 1e-6), kernels.rms_norm(x, weight, 1e-6)
    rounded = kernels.rms_norm(x, weight.half(), 1e-6)
    assert (got != expected).float().mean() < 0.01 < (rounded != expected).float().mean()


def test_a_product_in_16_bits_is_rounded_as_the_references() -> None:
    x, weight = random(64, 96, dtype=torch.float16), random(96, dtype=torch.float16, seed=1)
    got, expected = rms_norm(x, weight, 1e-6), kernels.rms_norm(x, weight, 1e-6)
    once = kernels.rms_norm(x, weight.float(), 1e-6)
    assert (got != expected).float().mean() < 0.01 < (once != expected).float().mean()


def test_the_sum_is_normed_as_it_is_rounded() -> None:
    x, residual = (random(64, 96, dtype=torch.float16, seed=seed) for seed in (0, 1))
    weight = random(96, dtype=torch.float32, seed=2)
    unrounded = kernels.rms_norm(x.float() + residual.float(), weight, 1e-6).half()
    expected, _ = kernels.add_rms_norm(x, residual.clone(), weight, 1e-6)
    got, _ = add_rms_norm(x, residual, weight, 1e-6)
    assert (got != expected).float().mean() < 0.01 < (unrounded != expected).float().mean()


def test_rows_do_not_meet() -> None:
    x = random(9, 257, dtype=torch.float16)
    weight = random(257, dtype=torch.float16, seed=1)
    together = rms_norm(x, weight, 1e-5)
    x[4] = float("nan")
    spoilt = rms_norm(x, weight, 1e-5)
    others = [row for row in range(9) if row != 4]
    assert torch.equal(spoilt[others], together[others]) and spoilt[4].isnan().all()
    assert torch.equal(rms_norm(x[7:8], weight, 1e-5), together[7:8])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 160), (2, 2 * 1025), (0, 8)])
def test_activations(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = 4 * random(*shape, dtype=dtype)
    assert_near(silu_mul(x), kernels.silu_mul(x))
    assert_near(gelu_tanh_mul(x), kernels.gelu_tanh_mul(x))


@pytest.mark.parametrize("activate", [silu_mul, gelu_tanh_mul])
def test_activations_are_rounded_once(activate: Callable[[Tensor], Tensor]) -> None:
    """Within half a unit of the last place, and float32's own error."""
    x = 4 * random(16, 192, dtype=torch.float16)
    exact = getattr(kernels, activate.__name__)(x.double())
    unit = torch.finfo(torch.float16).eps * exact.abs() + 2.0**-24
    assert ((activate(x).double() - exact).abs() <= 0.51 * unit).all()


@pytest.mark.parametrize("activate", [silu_mul, gelu_tanh_mul])
def test_activations_of_a_row_alone(activate: Callable[[Tensor], Tensor]) -> None:
    x = random(9, 2 * 1030, dtype=torch.float16)
    together = activate(x)
    x[4] = float("nan")
    spoilt = activate(x)
    others = [row for row in range(9) if row != 4]
    assert torch.equal(spoilt[others], together[others]) and spoilt[4].isnan().all()
    assert torch.equal(activate(x[7:8]), together[7:8])


def test_activations_far_out() -> None:
    gate = torch.tensor([[-1e4, 1e4, -30.0, 30.0, 0.0]], device=DEVICE)
    x = torch.cat([gate, torch.ones_like(gate)], 1)
    assert_near(silu_mul(x), kernels.silu_mul(x))
    assert_near(gelu_tanh_mul(x), kernels.gelu_tanh_mul(x))
