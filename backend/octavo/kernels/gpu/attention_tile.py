"""What decode and prefill share: one tile of keys and values, met by a tile of query rows."""

import triton
import triton.language as tl


@triton.jit
def attend_tile(
    acc, total, peak, query, positions,
    key_cache, value_cache, key_scales, value_scales, table,
    key_stride, value_stride, key_scale_stride, value_scale_stride,
    start, begin, end, scale, cap,
    Z: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
    BLOCK_N: tl.constexpr, WINDOW: tl.constexpr, IS_CAPPED: tl.constexpr,
    IS_QUANTIZED: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Online softmax (Milakov and Gimelshein, 2018, arXiv:1805.02867) over the keys at positions
    start … start + BLOCK_N of one sequence and KV head.

    acc [M, PADDED_D], total and peak [M] float32: the weighted sum of values, the sum of weights
        and the largest score so far, in powers of two
    query [M, PADDED_D], positions [M] of its rows
    key_cache, value_cache and their scales point at the KV head in block 0, `table` at the
        sequence's row; the strides are those of blocks
    begin, end: keys outside are neither read nor seen; IS_MASKED is False only where all of the
        tile lies inside and is seen by every row
    scale: of scores, to powers of two; with IS_CAPPED to shares of the cap, and `cap` is the
        cap in powers of two
    """
    at = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, PADDED_D)
    inside = (at >= begin) & (at < end) if IS_MASKED else tl.full([BLOCK_N], True, tl.int1)
    block = tl.load(table + at // Z, mask=inside, other=0).to(tl.int64)
    row = at % Z * G
    if IS_QUANTIZED:
        # Loads of two bytes are not made ahead by the compiler: both now, as far from their use
        # as can be.
        key_scale = tl.load(key_scales + block * key_scale_stride + row, mask=inside, other=0.0)
        value_place = value_scales + block * value_scale_stride + row
        value_scale = tl.load(value_place, mask=inside, other=0.0)
    mask = inside[:, None]
    if PADDED_D != D:
        mask = mask & (dims < D)[None, :]
    # What is not read counts as zero: NaN behind a context would stay, as 0 × NaN is NaN.
    place = (block * key_stride + row * D)[:, None] + dims[None, :]
    key = tl.load(key_cache + place, mask=mask, other=0.0).to(query.dtype)
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if IS_QUANTIZED:
        score *= key_scale.to(tl.float32)[None, :]
    if IS_CAPPED:
        # tanh by a power that cannot overflow.
        shrunk = tl.exp2(tl.abs(score) * -2.8853900817779268)  # e^(−2 |x|)
        score = tl.where(score < 0, -cap, cap) * (1 - shrunk) / (1 + shrunk)
    if IS_MASKED:
        seen = inside[None, :] & (at[None, :] <= positions[:, None])
        if WINDOW > 0:
            seen = seen & (at[None, :] > positions[:, None] - WINDOW)
        score = tl.where(seen, score, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(score, 1))
    base = new_peak
    if IS_MASKED:
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # of a row that sees no key yet
    shrink = tl.exp2(peak - base)
    weight = tl.exp2(score - base[:, None])
    total = total * shrink + tl.sum(weight, 1)
    place = (block * value_stride + row * D)[:, None] + dims[None, :]
    value = tl.load(value_cache + place, mask=mask, other=0.0).to(query.dtype)
    if IS_QUANTIZED:
        if query.dtype == tl.float16:
            # A weight times a small scale would lose its bits below float16's smallest number;
            # the product with the value is rounded once, as the reference's is.
            value = value * value_scale[:, None]
        else:
            weight *= value_scale.to(tl.float32)[None, :]
    acc = acc * shrink[:, None]
    acc = tl.dot(weight.to(query.dtype), value, acc, input_precision="ieee")
    return acc, total, new_peak
