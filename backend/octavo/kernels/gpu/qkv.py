"""What lies between the product with the stacked weights and attention, in one pass: norm,
rotation, and the write to KV memory, quantized on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# The largest stored number of each quantized type.
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def rope_and_store(
    qkv: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    cosines: Tensor,
    sines: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    *,
    num_heads: int,
) -> Tensor:
    """qkv [T, H + 2 G, D] → queries [T, H, D]; see reference_kv.rope_and_store. One program for
    each token and head. Slots that the pool does not have are skipped like −1."""
    tokens, total, dim = qkv.shape
    num_blocks, block_size, num_kv_heads = key_cache.shape[:3]
    half = cosines.shape[1]
    assert total == num_heads + 2 * num_kv_heads and 2 * half <= dim, (qkv.shape, half)
    assert qkv.stride(2) == 1 and qkv.stride(1) == dim and slot_mapping.shape == (tokens,)
    assert cosines.shape == sines.shape == (tokens, half)
    assert cosines.is_contiguous() and sines.is_contiguous() and slot_mapping.is_contiguous()
    assert key_cache.dtype is value_cache.dtype
    for cache in (key_cache, value_cache):
        assert cache.shape == (num_blocks, block_size, num_kv_heads, dim), cache.shape
        assert cache[0].is_contiguous()
    for scales in (key_scales, value_scales):
        assert (scales is not None) == (key_cache.dtype in _LARGEST), key_cache.dtype
        assert scales is None or (
            scales.shape == (num_blocks, block_size, num_kv_heads)
            and scales.dtype is torch.float16
            and scales[0].is_contiguous()
        )
    assert qk_norm is None or (
        qk_norm.shape == (num_heads + num_kv_heads, dim) and qk_norm.is_contiguous()
    )
    queries = qkv.new_empty(tokens, num_heads, dim)
    if tokens == 0:
        return queries
    is_quantized = key_scales is not None
    clamp = 0.0  # what a cast to the cache's type is limited to
    if not is_quantized and torch.finfo(key_cache.dtype).max < torch.finfo(qkv.dtype).max:
        clamp = torch.finfo(key_cache.dtype).max
    _rope_and_store_kernel[tokens, total](
        qkv, qk_norm, cosines, sines, queries, key_cache, value_cache, key_scales, value_scales,
        slot_mapping, qkv.stride(0), key_cache.stride(0), value_cache.stride(0),
        key_scales.stride(0) if key_scales is not None else 0,
        value_scales.stride(0) if value_scales is not None else 0,
        num_blocks * block_size, block_size, half, dim, eps,
        HEADS=num_heads, KV_HEADS=num_kv_heads, HAS_NORM=qk_norm is not None, CLAMP=clamp,
        LARGEST=_LARGEST[key_cache.dtype] if is_quantized else 0.0,
        IS_INTEGER=key_cache.dtype is torch.int8, BLOCK=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip
    return queries


@triton.jit
def _rotated(
    row, norm, cosines, sines, token, half, dim, eps, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """The head at `row`, normed and rotated, in its own type."""
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    # The number that each is rotated against; itself behind the rotated ones.
    is_first, is_rotated = columns < half, columns < 2 * half
    other = tl.where(is_first, columns + half, tl.where(is_rotated, columns - half, columns))
    numbers = tl.load(row + columns, mask=inside, other=0.0)
    partners = tl.load(row + other, mask=inside, other=0.0)
    if HAS_NORM:
        wide = numbers.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / dim + eps)
        numbers = _scaled(numbers, scale, tl.load(norm + columns, mask=inside, other=0.0))
        partners = _scaled(partners, scale, tl.load(norm + other, mask=inside, other=0.0))
    pair = tl.where(is_first, columns, columns - half)
    place = token * half + pair
    cos = tl.load(cosines + place, mask=is_rotated, other=1.0)
    sin = tl.load(sines + place, mask=is_rotated, other=0.0)
    sin = tl.where(is_first, -sin, sin)
    turned = numbers.to(tl.float32) * cos + partners.to(tl.float32) * sin
    # What is not rotated stays as it is: not finite either, where 0 times it would be NaN.
    return tl.where(is_rotated, turned.to(numbers.dtype), numbers)


@triton.jit
def _scaled(numbers, scale, weight):
    """As norm.py multiplies: in the weight's type."""
    normed = (numbers.to(tl.float32) * scale).to(weight.dtype).to(tl.float32)
    return (normed * weight.to(tl.float32)).to(weight.dtype).to(numbers.dtype)


@triton.jit
def _store(
    numbers, cache, scales, slot, head, block_stride, scale_stride, block_size, dim,
    KV_HEADS: tl.constexpr, CLAMP: tl.constexpr, LARGEST: tl.constexpr, IS_INTEGER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """numbers [BLOCK] of one head, zeros behind it, to its place, as reference_kv.store_kv."""
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    block, offset = slot // block_size, slot % block_size
    row = offset * KV_HEADS + head
    place = cache + block * block_stride + row * dim + columns
    stored = cache.dtype.element_ty
    wide = numbers.to(tl.float32)
    if LARGEST == 0.0:
        if CLAMP > 0.0:
            is_infinite = tl.abs(wide) == float("inf")
            limited = tl.minimum(tl.maximum(wide, -CLAMP, tl.PropagateNan.ALL), CLAMP,
                                 tl.PropagateNan.ALL)  # fmt: skip
            tl.store(place, tl.where(is_infinite, wide, limited).to(stored), mask=inside)
        else:
            tl.store(place, numbers.to(stored), mask=inside)
    else:
        is_nan = tl.max((wide != wide).to(tl.int32), axis=0) > 0
        peak = tl.max(tl.where(wide != wide, 0.0, tl.abs(wide)), axis=0)
        scale = tl.minimum(tl.div_rn(peak, LARGEST), 65504.0)
        scale = tl.where(peak == float("inf"), peak, scale)
        scale = tl.where(is_nan, float("nan"), scale).to(tl.float16)
        divisor = tl.where(scale == 0.0, 1.0, scale.to(tl.float32))
        quotient = tl.div_rn(wide, divisor)
        quotient = tl.where(quotient != quotient, 0.0, quotient)
        quotient = tl.minimum(tl.maximum(quotient, -LARGEST), LARGEST)
        if IS_INTEGER:
            # To the nearest, ties to even: what float32 does with a number that has no room left
            # for fractions, 1.5 · 2^23.
            quotient = (quotient + 12582912.0) - 12582912.0
        else:
            quotient = _rounded_to_fp8(quotient)
        tl.store(place, quotient.to(stored), mask=inside)
        tl.store(scales + block * scale_stride + row, scale)


@triton.jit
def _rounded_to_fp8(x):
    """x, within ±448, to the nearest e4m3 number, ties to even: then every cast is exact."""
    bits = x.to(tl.int32, bitcast=True)
    sign = bits & -0x80000000  # also of what becomes 0
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # 3 bits of fraction stay
    # Below 2^-6 the numbers are multiples of 2^-9; 1.5 · 2^14 has no room for less.
    near_zero = ((tl.abs(x) + 24576.0) - 24576.0).to(tl.int32, bitcast=True) | sign
    rounded = tl.where(tl.abs(x) < 0.015625, near_zero, bits)
    return rounded.to(tl.float32, bitcast=True)


@triton.jit
def _rope_and_store_kernel(
    qkv, norm, cosines, sines, queries, key_cache, value_cache, key_scales, value_scales,
    slot_mapping, qkv_stride, key_stride, value_stride, key_scale_stride, value_scale_stride,
    num_slots, block_size, half, dim, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HAS_NORM: tl.constexpr, CLAMP: tl.constexpr,
    LARGEST: tl.constexpr, IS_INTEGER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    row = qkv + token * qkv_stride + head * dim
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if head < HEADS:
        numbers = _rotated(
            row, norm + head * dim if HAS_NORM else norm, cosines, sines, token, half, dim, eps,
            HAS_NORM, BLOCK,
        )  # fmt: skip
        tl.store(queries + (token * HEADS + head) * dim + columns, numbers, mask=inside)
    elif (slot >= 0) & (slot < num_slots):
        if head < HEADS + KV_HEADS:
            numbers = _rotated(
                row, norm + head * dim if HAS_NORM else norm, cosines, sines, token, half, dim,
                eps, HAS_NORM, BLOCK,
            )  # fmt: skip
            _store(
                numbers, key_cache, key_scales, slot, head - HEADS, key_stride, key_scale_stride,
                block_size, dim, KV_HEADS, CLAMP, LARGEST, IS_INTEGER, BLOCK,
            )  # fmt: skip
        else:
            numbers = tl.load(row + columns, mask=inside, other=0.0)
            _store(
                numbers, value_cache, value_scales, slot, head - HEADS - KV_HEADS, value_stride,
                value_scale_stride, block_size, dim, KV_HEADS, CLAMP, LARGEST, IS_INTEGER, BLOCK,
            )  # fmt: skip
