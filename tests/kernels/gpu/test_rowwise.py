"""Norms, activations and moved blocks against their reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo import kernels
from octavo.kernels.gpu.activation import gelu_tanh_mul, silu_mul
from octavo.kernels.gpu.blocks import gather_blocks, scatter_blocks
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


def test_norm_of_heads_takes_a_row_of_weights_for_each() -> None:
    x, weight = random(4, 3, 80, dtype=torch.float16), random(3, 80, dtype=torch.float16, seed=1)
    assert_near(rms_norm(x, weight, 1e-6), kernels.rms_norm(x, weight, 1e-6))


def test_a_float32_weight_keeps_the_product_from_being_rounded_twice() -> None:
    x, weight = random(64, 96, dtype=torch.float16), random(96, dtype=torch.float32, seed=1)
    got, expected = rms_norm(x, weight, 1e-6), kernels.rms_norm(x, weight, 1e-6)
    rounded = kernels.rms_norm(x, weight.half(), 1e-6)
    assert (got != expected).float().mean() < 0.01 < (rounded != expected).float().mean()


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


def test_activations_far_out() -> None:
    gate = torch.tensor([[-1e4, 1e4, -30.0, 30.0, 0.0]], device=DEVICE)
    x = torch.cat([gate, torch.ones_like(gate)], 1)
    assert_near(silu_mul(x), kernels.silu_mul(x))
    assert_near(gelu_tanh_mul(x), kernels.gelu_tanh_mul(x))


def pool(num_blocks: int, num_bytes: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 256, (num_blocks, num_bytes), generator=generator)
    return drawn.to(DEVICE, torch.uint8)


@pytest.mark.parametrize("num_bytes", [64, 8192 + 64])
def test_blocks_move(num_bytes: int) -> None:
    storage = pool(7, num_bytes)
    before = storage.clone()
    blocks = torch.tensor([6, 0, 3], device=DEVICE)
    rows = gather_blocks(storage, blocks)
    assert torch.equal(rows, before[blocks])
    assert torch.equal(rows, kernels.gather_blocks(storage, blocks))
    scatter_blocks(storage, torch.tensor([1, 2, 6], device=DEVICE), rows)
    expected = before.clone()
    expected[[1, 2, 6]] = before[[6, 0, 3]]
    assert torch.equal(storage, expected)


def test_blocks_that_are_none_are_left_alone() -> None:
    storage = pool(4, 128)
    before = storage.clone()
    none = torch.tensor([-1, 4, 2**40], device=DEVICE)
    assert not gather_blocks(storage, none).any()
    scatter_blocks(storage, none, torch.full((3, 128), 255, dtype=torch.uint8, device=DEVICE))
    assert torch.equal(storage, before)
    assert gather_blocks(storage, none[:0]).shape == (0, 128)
