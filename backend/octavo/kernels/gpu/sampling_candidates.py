"""Rows of `sampling` that cut: their candidates, and where min_p, top_k and top_p cut them.

Weights are float32 and not negative, so they are in the order of their bits, below 2^30. A cut is
the bits of the smallest weight that stays and how many of those equal to it do, the first ones. It
is found two bits at a time: the largest number of which the weights from it on still reach as many
tokens as top_k, or as much as top_p of the sum.
"""

import triton
import triton.language as tl

from octavo.kernels.gpu.sampling_chunks import (
    UNALIGNED,
    last_of,
    reach,
    row_stats,
    scale_of,
    weights_of,
)

NO_BITS = tl.constexpr(2**31 - 1)
LEAST_LIMIT = tl.constexpr(2.0**-1000)  # of a top_p of 0, which the largest weight reaches


@triton.jit
def read_cuts(row, vocabulary, top_k, top_p, min_p):
    """The row's own, each in its range: a top_k of 0, a top_p of 1 and a min_p of 0 cut nothing.
    And whether there is any."""
    k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    k = tl.where((k > 0) & (k < vocabulary), k, 0).to(tl.int32)
    p = tl.where(p < 1, tl.maximum(p, 0.0), 1.0)
    least = tl.where(least > 0, tl.minimum(least, 1.0), 0.0)
    return k, p, least, (k > 0) | (p < 1) | (least > 0)


@triton.jit
def total_of(sums, row, num_chunks, tops, top, scale, CHUNKS: tl.constexpr):
    """The chunks' sums of weights relative to the row's largest, float64, and their total."""
    chunks = tl.arange(0, CHUNKS)
    own = tl.load(sums + row * num_chunks + chunks, mask=chunks < num_chunks, other=0.0)
    own = (own * weights_of(tops, top, scale)).to(tl.float64)
    return own, tl.sum(own, 0)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def count_candidates(
    logits, stride, vocabulary, temperature, top_k, top_p, min_p, largest, first, sums, groups,
    num_chunks, counts, bounds, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr, ALL_GROUPS: tl.constexpr,
):  # fmt: skip
    """Grid (S, chunks). A bound that is not above the row's cut, as bits of a weight, and how many
    tokens of each chunk reach it. GROUPS: of a chunk; ALL_GROUPS: a power of two, of a row."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k, p, least, cuts = read_cuts(row, vocabulary, top_k, top_p, min_p)
    own = tl.load(temperature + row)
    if (own > 0) & cuts:
        tops, top, _, is_finite = row_stats(largest, first, row, num_chunks, CHUNKS)
        scale = scale_of(own)
        bound = tl.maximum(least.to(tl.int32, bitcast=True), 1)  # no weight is no candidate
        if k > 0:
            group = tl.arange(0, ALL_GROUPS)
            known = groups + row * num_chunks * GROUPS + group
            x = tl.load(known, mask=group < num_chunks * GROUPS, other=float("-inf"))
            bits = weights_of(x, top, scale).to(tl.int32, bitcast=True)
            bound = tl.maximum(bound, _kth_largest(bits, k))
        elif least == 0:
            # All that is below this is not as much as what top_p leaves out.
            total = total_of(sums, row, num_chunks, tops, top, scale, CHUNKS)[1]
            rest = 0.999 * (1.0 - p.to(tl.float64)) * total / vocabulary
            bound = tl.maximum(bound, rest.to(tl.float32).to(tl.int32, bitcast=True))
        x = _load_chunk(logits + row * stride, chunk, vocabulary, CHUNK)
        bits = weights_of(x, top, scale).to(tl.int32, bitcast=True)
        count = tl.sum((bits >= bound).to(tl.int32), 0)
        tl.store(counts + row * num_chunks + chunk, tl.where(is_finite, count, 0))
        if chunk == 0:
            tl.store(bounds + row, bound)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def gather_candidates(
    logits, stride, vocabulary, temperature, top_k, top_p, min_p, largest, first, num_chunks,
    counts, bounds, values, ids, capacity, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Grid (S, chunks). Logits and tokens of each row's candidates, by rising token, unless they
    are more than `capacity`, the columns of `values` and `ids`."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own = tl.load(temperature + row)
    if (own > 0) & read_cuts(row, vocabulary, top_k, top_p, min_p)[3]:
        chunks = tl.arange(0, CHUNKS)
        known = counts + row * num_chunks + chunks
        count = tl.load(known, mask=chunks < num_chunks, other=0)
        mine = tl.sum(tl.where(chunks == chunk, count, 0), 0)
        if (mine > 0) & (tl.sum(count, 0) <= capacity):
            top = row_stats(largest, first, row, num_chunks, CHUNKS)[1]
            x = _load_chunk(logits + row * stride, chunk, vocabulary, CHUNK)
            bits = weights_of(x, top, scale_of(own)).to(tl.int32, bitcast=True)
            kept = bits >= tl.load(bounds + row)
            before = tl.sum(tl.where(chunks < chunk, count, 0), 0)
            place = tl.cumsum(kept.to(tl.int32), 0) - 1
            # They are as many as were counted, but memory is not left to that.
            kept = kept & (place < mine)
            place = row * capacity + before + place
            tl.store(values + place, x, mask=kept)
            tl.store(ids + place, chunk * CHUNK + tl.arange(0, CHUNK), mask=kept)


@triton.jit
def pick_candidate(
    values, count, bound, top, scale, k, p, least, total, uniform, TILE: tl.constexpr
):  # fmt: skip
    """Which of the `count` logits at `values` the row's number takes. total: of all the row's
    weights, of use where top_p alone cuts; then most are below the bound."""
    threshold, ties = tl.full((), 0, tl.int32), count
    if k > 0:
        threshold = _threshold(values, count, bound, top, scale, k.to(tl.float64), True, TILE)
        above, num_above, equal = _split(values, count, bound, top, scale, threshold, TILE)
        ties = tl.minimum(k - num_above, equal)
        total = above + ties * _weight_of(threshold)
    elif least > 0:
        total = _split(values, count, bound, top, scale, threshold, TILE)[0]
    if p < 1:
        limit = tl.maximum(p.to(tl.float64) * total, LEAST_LIMIT)
        own = _threshold(values, count, bound, top, scale, limit, False, TILE)
        if (own > 0) & (own >= threshold):
            above, num_above, equal = _split(values, count, bound, top, scale, own, TILE)
            wanted = tl.ceil((limit - above) / _weight_of(own))
            wanted = tl.minimum(tl.maximum(wanted, 1.0), equal.to(tl.float64)).to(tl.int32)
            ties = tl.where(own == threshold, tl.minimum(ties, wanted), wanted)
            threshold = own
    above = _split(values, count, bound, top, scale, threshold, TILE)[0]
    target = uniform * (above + ties * _weight_of(threshold))
    return _pick(values, count, bound, top, scale, threshold, ties, target, TILE)


@triton.jit
def _pick(values, count, bound, top, scale, threshold, ties, target, TILE: tl.constexpr):
    """The place at which the weights that stay exceed the target; the last of these where rounding
    keeps them from that."""
    place, last, start, num_tied = -1, 0, 0, 0
    before = tl.full((), 0.0, tl.float64)
    while (place < 0) & (start < count):
        weights, bits = _load_tile(values, start, count, bound, top, scale, TILE)
        tied = (bits == threshold).to(tl.int32)
        stays = (bits > threshold) | ((tied > 0) & (num_tied + tl.cumsum(tied, 0) <= ties))
        wide = tl.where(stays, weights, 0.0).to(tl.float64)
        found = reach(before + tl.cumsum(wide, 0), wide, target, TILE)
        place = tl.where(found < TILE, start + found, -1)
        tail = last_of(wide, TILE)
        last = tl.where(tail >= 0, start + tail, last)
        before += tl.sum(wide, 0)
        num_tied += tl.sum(tied, 0)
        start += TILE
    return tl.where(place < 0, last, place)


@triton.jit
def _threshold(
    values, count, bound, top, scale, limit, IS_COUNT: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The largest bits from which on the weights, or with IS_COUNT their number, reach the limit,
    which is above zero; 0 if nothing does."""
    threshold, unit = 0, 1 << 28
    while unit > 0:
        # It lies in threshold + [0, 4 · unit): it is what all weights there are, once they are the
        # same, which is soon.
        lowest, highest = NO_BITS, -1
        one = tl.full((), 0.0, tl.float64)
        two, three = one, one
        for start in range(0, count, TILE):
            weights, bits = _load_tile(values, start, count, bound, top, scale, TILE)
            distance = bits - threshold
            inside = (distance >= 0) & (distance < 4 * unit)
            lowest = tl.minimum(lowest, tl.min(tl.where(inside, bits, NO_BITS), 0))
            highest = tl.maximum(highest, tl.max(tl.where(inside, bits, -1), 0))
            if IS_COUNT:
                weights = tl.where(bits > 0, 1.0, 0.0)
            one += tl.sum(tl.where(distance >= unit, weights, 0.0), 0).to(tl.float64)
            two += tl.sum(tl.where(distance >= 2 * unit, weights, 0.0), 0).to(tl.float64)
            three += tl.sum(tl.where(distance >= 3 * unit, weights, 0.0), 0).to(tl.float64)
        # The sums fall, so as many reach the limit as there are steps to go.
        steps = (one >= limit).to(tl.int32) + (two >= limit).to(tl.int32)
        steps += (three >= limit).to(tl.int32)
        is_found = lowest >= highest  # or nothing is there, as the limit is not reached
        threshold = tl.where(
            is_found, tl.minimum(lowest, tl.maximum(highest, 0)), threshold + steps * unit
        )
        unit = tl.where(is_found, 0, unit >> 2)
    return threshold


@triton.jit
def _split(values, count, bound, top, scale, threshold, TILE: tl.constexpr):
    """The sum of the weights above the threshold, their number, and that of those equal to it."""
    above = tl.full((), 0.0, tl.float64)
    num_above, equal = 0, 0
    for start in range(0, count, TILE):
        weights, bits = _load_tile(values, start, count, bound, top, scale, TILE)
        is_above = bits > threshold
        above += tl.sum(tl.where(is_above, weights, 0.0), 0).to(tl.float64)
        num_above += tl.sum(is_above.to(tl.int32), 0)
        equal += tl.sum((bits == threshold).to(tl.int32), 0)
    return above, num_above, equal


@triton.jit
def _load_tile(values, start, count, bound, top, scale, TILE: tl.constexpr):
    """Weights and their bits; zeros below the bound."""
    places = start + tl.arange(0, TILE)
    x = tl.load(values + places, mask=places < count, other=float("-inf"))
    weights = weights_of(x, top, scale)
    bits = weights.to(tl.int32, bitcast=True)
    return tl.where(bits >= bound, weights, 0.0), tl.where(bits >= bound, bits, 0)


@triton.jit
def _weight_of(bits):
    return bits.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _kth_largest(bits, k):
    """The k-th largest of the vector, 0 if it has fewer above zero."""
    found = 0
    for step in range(30):
        trial = found + (1 << (29 - step))
        if tl.sum((bits >= trial).to(tl.int32), 0) >= k:
            found = trial
    return found


@triton.jit
def _load_chunk(logits, chunk, vocabulary, CHUNK: tl.constexpr):
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    return tl.load(logits + ids, mask=ids < vocabulary, other=float("-inf"))
