"""The CPU kernels' products with packed weights, against their statements in plain torch."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu import Library
from octavo.kernels.reference_weights import QuantizedWeight, linear_quantized, quantize_weight

# bits, group size, quantized activations, and the scales' type where it is a checkpoint's
QUANTIZED = [
    (8, None, False), (8, None, True),
    *((4, size, activations) for size in (32, 64, 128) for activations in (False, True)),
    (8, 32, False, torch.float16), (8, 128, False, torch.float32), (8, 64, True, torch.bfloat16),
    (4, 64, False, torch.float16), (4, 32, True, torch.float32), (4, None, False, torch.float32),
]  # fmt: skip
KINDS = ["float32", "bfloat16", *QUANTIZED]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_weight(kind: object, out: int, width: int, seed: int) -> Tensor | QuantizedWeight:
    plain = normal(out, width, seed=seed) / width**0.5
    if isinstance(kind, str):
        return plain.to(getattr(torch, kind))
    bits, group_size, activations, *scales = kind  # type: ignore[misc]
    own = quantize_weight(plain, bits, group_size, activations)
    if not scales:
        return own
    # Not numbers that bfloat16 has too.
    return replace(own, scales=(own.scales.float() * 1.003).to(scales[0]))


def expected(x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Tensor:
    if isinstance(weight, QuantizedWeight):
        return linear_quantized(x, weight, bias)
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double()).float()


def check(library: Library, kind: object, rows: int, out: int, width: int, seed: int) -> None:
    """Inputs of both types, with and without a bias; each row alone gives the same bits."""
    weight = make_weight(kind, out, width, seed)
    bias = normal(out, seed=seed + 1) if seed % 2 else None
    for dtype in (torch.float32, torch.bfloat16):
        if isinstance(weight, Tensor) and weight.dtype is not dtype:
            continue
        packed = library.pack(weight, dtype, bias)
        x = normal(rows, width, seed=seed + 2).to(dtype).float()
        got = library.linear(x, packed)
        torch.testing.assert_close(got, expected(x, weight, bias), rtol=1e-4, atol=1e-4)
        least = 5 if library.isa == "amx" else 1  # fewer rows go another way there
        if rows >= least:
            again = library.linear(x[-least:], packed)
            assert torch.equal(again, got[-least:])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 16, 17, 33, 65])
def test_row_counts(library: Library, kind: object, rows: int) -> None:
    check(library, kind, rows, out=96, width=256, seed=rows)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows", [255, 256, 257, 520])
def test_many_rows(library: Library, kind: object, rows: int) -> None:
    """More rows, panels and inputs than are taken together; any of the rows give the same bits."""
    out, width = (1040, 1152) if rows == 520 else (40, 640)
    weight = make_weight(kind, out, width, seed=rows)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.bfloat16
    packed = library.pack(weight, dtype)
    x = normal(rows, width, seed=rows + 1).to(dtype).float()
    got = library.linear(x, packed)
    torch.testing.assert_close(got, expected(x, weight, None), rtol=1e-4, atol=1e-4)
    for begin, end in [(0, 5), (3, 20), (15, 48), (100, 201), (rows - 7, rows)]:
        assert torch.equal(library.linear(x[begin:end], packed), got[begin:end]), (begin, end)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_shapes(library: Library, kind: object) -> None:
    shapes = random.Random(str(kind))
    unit = kind[1] or 1 if isinstance(kind, tuple) else 1
    for seed in range(25):
        rows, out = shapes.randint(1, 40), shapes.randint(1, 150)
        width = shapes.randint(1, 300 // unit) * unit
        check(library, kind, rows, out, width, seed)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("half", [1, 15, 16, 40])
def test_gated(library: Library, kind: object, half: int) -> None:
    """The upper half of the outputs gates the lower one."""
    weight, bias = make_weight(kind, 2 * half, 128, seed=3), normal(2 * half, seed=4)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.bfloat16
    x = normal(7, 128, seed=5).to(torch.bfloat16).float()
    gate, up = expected(x, weight, bias).chunk(2, dim=-1)
    got = library.linear(x, library.pack(weight, dtype, bias, is_gated=True))
    torch.testing.assert_close(got, F.silu(gate) * up, rtol=1e-4, atol=1e-4)


def test_no_rows(library: Library) -> None:
    packed = library.pack(normal(5, 8), torch.float32)
    assert library.linear(torch.empty(0, 8), packed).shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(library: Library, kind: object, fault: float) -> None:
    weight = make_weight(kind, 40, 128, seed=6)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.bfloat16
    x = normal(9, 128, seed=7)
    packed = library.pack(weight, dtype)
    clean = library.linear(x, packed)
    x[4, 77] = fault
    got = library.linear(x, packed)
    assert not got[4].isfinite().any()
    kept = [row for row in range(9) if row != 4]
    assert torch.equal(got[kept], clean[kept])


def test_zero_weights_and_inputs(library: Library) -> None:
    for kind in KINDS:
        weight = make_weight(kind, 33, 128, seed=8)
        dtype = weight.dtype if isinstance(weight, Tensor) else torch.bfloat16
        got = library.linear(torch.zeros(3, 128), library.pack(weight, dtype))
        assert torch.equal(got, torch.zeros(3, 33))


def test_bytes_are_those_of_the_format(library: Library) -> None:
    for kind, bits in (("bfloat16", 16), ((8, None, False), 8), ((4, 128, False), 4.125)):
        packed = library.pack(make_weight(kind, 256, 1024, seed=9), torch.bfloat16)
        assert packed.num_bytes == pytest.approx(256 * 1024 * bits / 8, rel=0.005)
