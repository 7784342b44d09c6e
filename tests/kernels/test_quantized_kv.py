"""Quantized and cast caches: what is stored, how far off it is, and attention that reads it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from octavo import kernels
from octavo.kernels.reference_kv import cast_kv, dequantize_kv, quantize_kv

INT8, FP8 = torch.int8, torch.float8_e4m3fn
QUANTIZED = pytest.mark.parametrize("dtype", [INT8, FP8], ids=["int8", "fp8"])
MAX_HALF = 65504.0


def round_trip(x: Tensor, dtype: torch.dtype) -> Tensor:
    return dequantize_kv(*quantize_kv(x, dtype), torch.float32)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spread", [1e-7, 1e-6, 1e-4, 3e-3, 1.0, 40.0, 1e5])
@pytest.mark.parametrize("dim", [1, 24, 64, 128])
def test_int8_is_within_half_a_step(dim: int, spread: float) -> None:
    x = random(50, 3, dim) * spread
    stored, scales = quantize_kv(x, INT8)
    assert stored.shape == x.shape and scales.shape == (50, 3)
    assert (stored.dtype, scales.dtype) == (INT8, torch.float16)
    error = (dequantize_kv(stored, scales, torch.float32) - x).abs()
    step = x.abs().amax(-1, keepdim=True) / 127
    # A float16 scale is off by 2^-11 of itself; near zero by half of its smallest step, 2^-25.
    assert (error <= step / 2 * (1 + 2**-10) + 127 * 2**-25).all()


@pytest.mark.parametrize("dim", [1, 24, 64, 128])
def test_fp8_is_within_half_a_step(dim: int) -> None:
    x = random(50, 3, dim)
    error = (round_trip(x, FP8) - x).abs()
    peak = x.abs().amax(-1, keepdim=True)
    # Three bits of mantissa; below 2^-6 of 448 the steps are all 2^-9.
    assert (error <= (x.abs() * 2**-4).maximum(peak / 448 * 2**-10) * (1 + 2**-9)).all()


def test_the_rounding_of_a_scale_costs_nothing() -> None:
    """Numbers are divided by the scale as it is stored: they are off by half of it at most."""
    x = random(4000, 2, 64)
    stored, scales = quantize_kv(x, INT8)
    error = (dequantize_kv(stored, scales, torch.float32) - x).abs().amax(-1)
    assert (error <= scales.float() / 2 * (1 + 1e-5)).all()


@QUANTIZED
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_stay_zeros(dtype: torch.dtype, given: torch.dtype) -> None:
    x = torch.zeros(3, 2, 8, dtype=given)
    x[1, 0, 3] = 5
    back = round_trip(x, dtype)
    assert torch.equal(back != 0, x != 0)
    tiny = torch.full((1, 1, 8), 1e-12)  # its scale is 0 as a float16
    assert torch.equal(round_trip(tiny, dtype), torch.zeros_like(tiny))


@QUANTIZED
@pytest.mark.parametrize("largest", [1e6, 8.3e6, 1e7, 1e20, torch.finfo(torch.float32).max])
def test_what_is_finite_stays_finite(dtype: torch.dtype, largest: float) -> None:
    x = torch.tensor([[[largest, -largest, 1.0, 0.0]]])
    back = round_trip(x, dtype)
    assert back.isfinite().all()
    limit = MAX_HALF * (127 if dtype is INT8 else 448)
    torch.testing.assert_close(back[..., 0], x[..., 0].clamp(max=limit), rtol=1e-3, atol=0)
    assert torch.equal(back[..., 1], -back[..., 0])


@QUANTIZED
@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(dtype: torch.dtype, fault: float) -> None:
    x = random(3, 2, 8)
    x[1, 0, 5] = fault
    back = round_trip(x, dtype)
    assert not back[1, 0].isfinite().any(), "a fault of one number is one of its token and head"
    assert back[[0, 2]].isfinite().all() and back[1, 1].isfinite().all()


@QUANTIZED
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16])
def test_sixteen_bit_numbers_are_quantized_as_their_float32_is(
    dtype: torch.dtype, given: torch.dtype
) -> None:
    x = random(20, 2, 64).to(given)
    stored, scales = quantize_kv(x, dtype)
    wide_stored, wide_scales = quantize_kv(x.float(), dtype)
    assert torch.equal(stored.float(), wide_stored.float()) and torch.equal(scales, wide_scales)
    back = dequantize_kv(stored, scales, given)
    assert back.dtype == given
    assert torch.equal(back, dequantize_kv(stored, scales, torch.float32).to(given))


@pytest.mark.parametrize("largest", [7e4, -1e30])
def test_a_cast_to_float16_keeps_finite_what_is(largest: float) -> None:
    x = torch.tensor([largest, 1.0, math.inf, -math.inf, math.nan])
    for given in (x, x.bfloat16()):
        cast = cast_kv(given, torch.float16)
        assert cast.dtype is torch.float16
        assert cast[:2].tolist() == [math.copysign(MAX_HALF, largest), 1.0]
        assert cast[2:4].tolist() == [math.inf, -math.inf] and cast[4].isnan()


def make_caches(dtype: torch.dtype, blocks: int, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Caches [blocks, size, 2, 8] and scales, each strided as one part of a block's row."""
    caches = [torch.zeros(blocks, 3, size, 2, 8).to(dtype)[:, 1] for _ in range(2)]
    scales = [torch.zeros(blocks, 3, size, 2, dtype=torch.float16)[:, 1] for _ in range(2)]
    return caches, scales


@QUANTIZED
@pytest.mark.parametrize("size", [1, 4, 16])
def test_store_kv_quantizes(dtype: torch.dtype, size: int) -> None:
    caches, scales = make_caches(dtype, 32 // size, size)
    given = [random(5, 2, 8, seed=seed) for seed in range(2)]
    slots = torch.tensor([9, -1, 31, 0, 17])
    kernels.store_kv(*given, *caches, slots, *scales)
    kept = slots >= 0
    for rows, cache, own in zip(given, caches, scales, strict=True):
        stored, expected_scales = quantize_kv(rows[kept], dtype)
        where = (slots[kept] // size, slots[kept] % size)
        assert torch.equal(cache.float()[where], stored.float())
        assert torch.equal(own[where], expected_scales)
        assert cache.float().ne(0).any(-1).sum() == own.ne(0).sum() == 4 * 2


# (query tokens, context length) of each sequence, the first two decodes.
BATCH = [(1, 12), (1, 41), (5, 5), (6, 31), (1, 3)]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [INT8, FP8, torch.float16, torch.bfloat16, torch.float32])
def test_attention_reads_what_is_stored(
    dtype: torch.dtype, compute: torch.dtype, size: int, window: int | None
) -> None:
    """Equal to attention over a cache of the computation's type that holds what was read back,
    with NaN wherever nothing was stored."""
    needed = [-(-context // size) for _, context in BATCH]
    tables = torch.zeros(len(BATCH), max(needed), dtype=torch.int64)
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(1)).tolist()
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
    caches, scales = make_caches(dtype, sum(needed), size)
    used = torch.zeros(sum(needed), size, dtype=torch.bool)
    for row, (_, context) in enumerate(BATCH):
        positions = torch.arange(context)
        slots = tables[row, positions // size] * size + positions % size
        used[slots // size, slots % size] = True
        given = [random(context, 2, 8, seed=row + seed).to(compute) for seed in (0, 50)]
        kernels.store_kv(*given, *caches, slots, *(scales if dtype in (INT8, FP8) else ()))
    wide = []
    for cache, own in zip(caches, scales, strict=True):
        if dtype in (INT8, FP8):
            own[~used] = math.nan
            wide.append(dequantize_kv(cache, own, compute))
        else:
            cache[~used] = math.nan
            wide.append(cache.to(compute))
    lengths = torch.tensor([length for length, _ in BATCH])
    arguments = {
        "query": random(int(lengths.sum()), 4, 8, seed=9).to(compute),
        "block_tables": tables,
        "query_start": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "context_lens": torch.tensor([context for _, context in BATCH]),
        "num_decodes": 2, "scale": 0.3, "window": window,
    }  # fmt: skip
    expected = kernels.paged_attention(key_cache=wide[0], value_cache=wide[1], **arguments)
    if dtype in (INT8, FP8):
        arguments |= {"key_scales": scales[0], "value_scales": scales[1]}
    got = kernels.paged_attention(key_cache=caches[0], value_cache=caches[1], **arguments)
    assert got.dtype == compute and got.isfinite().all()
    assert torch.equal(got, expected)


@QUANTIZED
def test_it_does_not_matter_where_a_prompt_is_cut(dtype: torch.dtype) -> None:
    """The same bytes are stored, and attention of a chunk reads them as attention of the whole
    does, though the chunk's own keys and values are at hand unquantized."""
    length, cuts = 23, [0, 3, 4, 11, 23]
    keys, values = random(length, 2, 8), random(length, 2, 8, seed=1)
    query, table = random(length, 4, 8, seed=2), torch.randperm(6)[None]
    slots = table[0, torch.arange(length) // 4] * 4 + torch.arange(length) % 4
    results, stores = [], []
    for parts in ([0, length], cuts):
        caches, scales = make_caches(dtype, 6, 4)
        out = []
        for begin, end in pairwise(parts):
            part = slice(begin, end)
            kernels.store_kv(keys[part], values[part], *caches, slots[part], *scales)
            out.append(
                kernels.paged_attention(
                    query[part], *caches, table, torch.tensor([0, end - begin]),
                    torch.tensor([end]), 0, 0.3, key_scales=scales[0], value_scales=scales[1],
                )
            )  # fmt: skip
        results.append(torch.cat(out))
        stores.append([part.float() for part in (*caches, *scales)])
    assert all(torch.equal(mine, other) for mine, other in zip(*stores, strict=True))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
