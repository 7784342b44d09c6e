"""Operators that treat each token by itself, against loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from octavo import kernels

# dtype, relative and absolute tolerance
PRECISIONS = [
    pytest.param(torch.float32, 1e-5, 1e-6, id="float32"),
    pytest.param(torch.float16, 4e-3, 1e-3, id="float16"),
    pytest.param(torch.bfloat16, 3e-2, 8e-3, id="bfloat16"),
]
# weird shapes
ROWS = [1, 3, 17]
WIDTHS = [1, 7, 64, 130]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same numbers, every other column of a wider tensor."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), math.nan)
    wide[..., ::2] = x
    view = wide[..., ::2]
    assert not view.is_contiguous() or x.shape[-1] == 1
    return view


def assert_close(got: Tensor, expected: list[list[float]], rtol: float, atol: float) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=atol)


def naive_rms_norm(x: Tensor, weight: Tensor, eps: float) -> list[list[float]]:
    result = []
    for row in x.double().tolist():
        scale = 1 / math.sqrt(sum(value * value for value in row) / len(row) + eps)
        result.append([v * scale * w for v, w in zip(row, weight.double().tolist(), strict=True)])
    return result


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    x, weight = random(rows, width, dtype=dtype), 1 + random(width, dtype=dtype, seed=1) / 4
    expected = naive_rms_norm(x, weight, 1e-5)
    for given in (x, strided(x)):
        got = kernels.rms_norm(given, weight, 1e-5)
        assert got.dtype == dtype
        assert_close(got, expected, rtol, atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_with_a_float32_weight_rounds_once(dtype: torch.dtype) -> None:
    x, weight = random(17, 64, dtype=dtype), 1 + random(64, seed=1) / 4
    exact = torch.tensor(naive_rms_norm(x, weight, 1e-5), dtype=torch.float64)
    got = kernels.rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    # Half a unit in the last place, and float32's own error.
    assert ((got.double() - exact).abs() <= 0.501 * torch.finfo(dtype).eps * exact.abs()).all()
    twice = kernels.rms_norm(x, weight.to(dtype), 1e-5)
    assert not torch.equal(got, twice)


def test_rms_norm_takes_a_weight_for_each_head() -> None:
    x, weights = random(5, 3, 8), random(3, 8, seed=1)
    got = kernels.rms_norm(x, weights, 1e-5)
    for head in range(3):
        assert torch.equal(got[:, head], kernels.rms_norm(x[:, head], weights[head], 1e-5))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert kernels.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6).tolist() == [[0.0] * 8] * 2


def test_rms_norm_does_not_overflow_in_float16() -> None:
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)  # 1000² is above float16's largest
    got = kernels.rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6)
    assert got.tolist() == [[1.0] * 8]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize("rows", ROWS)
def test_add_rms_norm(rows: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    x, residual = random(rows, 24, dtype=dtype), random(rows, 24, dtype=dtype, seed=1)
    weight = 1 + random(24, dtype=dtype, seed=2) / 4
    total = x + residual
    normed, new_residual = kernels.add_rms_norm(x.clone(), residual, weight, 1e-5)
    assert torch.equal(new_residual, total)
    assert new_residual.data_ptr() == residual.data_ptr(), "the residual is overwritten"
    assert_close(normed, naive_rms_norm(total, weight, 1e-5), rtol, atol)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize("width", [1, 5, 64])
@pytest.mark.parametrize("rows", ROWS)
def test_silu_mul(rows: int, width: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    x = 3 * random(rows, 2 * width, dtype=dtype)
    expected = [
        [g / (1 + math.exp(-g)) * u for g, u in zip(row[:width], row[width:], strict=True)]
        for row in x.double().tolist()
    ]
    for given in (x, strided(x)):
        got = kernels.silu_mul(given)
        assert got.dtype == dtype
        assert_close(got, expected, rtol, atol)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize("width", [1, 5, 64])
@pytest.mark.parametrize("rows", ROWS)
def test_gelu_tanh_mul(rows: int, width: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    x = 3 * random(rows, 2 * width, dtype=dtype)

    def gelu(g: float) -> float:
        return 0.5 * g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))

    expected = [
        [gelu(g) * u for g, u in zip(row[:width], row[width:], strict=True)]
        for row in x.double().tolist()
    ]
    for given in (x, strided(x)):
        got = kernels.gelu_tanh_mul(given)
        assert got.dtype == dtype
        assert_close(got, expected, rtol, atol)


def test_apply_softcap() -> None:
    x = 40 * random(3, 17)
    expected = [[30 * math.tanh(value / 30) for value in row] for row in x.double().tolist()]
    assert_close(kernels.apply_softcap(x, 30.0), expected, 1e-5, 1e-6)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 1, 1), (1, 65, 7), (5, 16, 33)])
def test_linear(
    rows: int,
    inner: int,
    outer: int,
    bias: bool,
    dtype: torch.dtype,
    rtol: float,
    atol: float,
) -> None:
    x, weight = random(rows, inner, dtype=dtype), random(outer, inner, dtype=dtype, seed=1) / 8
    added = random(outer, dtype=dtype, seed=2) if bias else None
    offsets = added.double().tolist() if added is not None else [0.0] * outer
    expected = [
        [
            math.fsum(a * b for a, b in zip(row, column, strict=True)) + offset
            for column, offset in zip(weight.double().tolist(), offsets, strict=True)
        ]
        for row in x.double().tolist()
    ]
    for given in (x, strided(x)):
        assert_close(kernels.linear(given, weight, added), expected, rtol, atol)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (3, 5, 6), (4, 2, 64)])
def test_apply_rope(
    tokens: int, heads: int, dim: int, dtype: torch.dtype, rtol: float, atol: float
) -> None:
    x = random(tokens, heads, dim, dtype=dtype)
    angles = 10 * random(tokens, dim // 2, seed=1)
    expected = [[[0.0] * dim for _ in range(heads)] for _ in range(tokens)]
    for token in range(tokens):
        for head in range(heads):
            row = x[token, head].double().tolist()
            for pair in range(dim // 2):
                # The pair is one number of the complex plane, turned by its angle.
                turned = complex(row[pair], row[pair + dim // 2])
                turned *= complex(math.cos(angles[token, pair]), math.sin(angles[token, pair]))
                expected[token][head][pair] = turned.real
                expected[token][head][pair + dim // 2] = turned.imag
    wide = torch.cat([x, x], dim=1)[:, :heads]  # a slice of heads, as of a fused projection
    for given in (x, wide):
        got = kernels.apply_rope(given, angles.cos(), angles.sin())
        assert got.dtype == dtype
        wanted = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("rotary_dim", [2, 6])
def test_apply_rope_to_a_part_of_each_head(rotary_dim: int) -> None:
    x, angles = random(3, 2, 10), random(3, rotary_dim // 2, seed=1)
    got = kernels.apply_rope(x, angles.cos(), angles.sin())
    rotated = kernels.apply_rope(x[..., :rotary_dim], angles.cos(), angles.sin())
    assert torch.equal(got, torch.cat([rotated, x[..., rotary_dim:]], dim=-1))


def test_apply_rope_leaves_its_input_alone() -> None:
    x = random(2, 2, 4)
    before = x.clone()
    kernels.apply_rope(x, torch.ones(2, 2), torch.ones(2, 2))
    assert torch.equal(x, before)
