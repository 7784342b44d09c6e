"""The next token of each row of logits: `kernels.reference`'s greedy and sample, without a sort.

One pass gives each chunk's largest logit and the sum of its probabilities: all that greedy rows and
rows without cuts need, whose token is then found within one chunk. For rows with top_k, top_p or
min_p two more passes count and gather the candidates, the few tokens above a bound that surely is
not above the cut; where that is, is found among them alone (`sampling_candidates`).

The largest weight is 1 instead of a probability: the same tokens stay, and nothing overflows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.sampling_candidates import (
    count_candidates,
    gather_candidates,
    pick_candidate,
    read_cuts,
    total_of,
)
from octavo.kernels.gpu.sampling_chunks import (
    CHUNK,
    GROUP,
    GROUPS,
    UNALIGNED,
    WARPS,
    chunk_stats,
    last_of,
    reach,
    row_shape,
    row_stats,
    scale_of,
    weights_of,
)

# Candidates of a row that are gathered, 8 bytes each. Of more the row itself is searched, in the
# same steps: right, but each of some 20 passes then reads the vocabulary.
MAX_CANDIDATES = 16_384
# Candidates that a program holds at a time, and the warps of those that add along a vector, which
# takes many registers.
TILE, PICK_WARPS = 4096, 8


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of logits [S, V] float32 the most likely token, of equal ones the first, [S]
    int64, and whether its logit is finite, [S] bool: false with any NaN or +∞ in the row, or with
    −∞ alone; then the token is any of the vocabulary."""
    rows, num_chunks = row_shape(logits)
    token_ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    is_finite = torch.empty(rows, dtype=torch.bool, device=logits.device)
    if rows == 0:
        return token_ids, is_finite
    largest = logits.new_empty(rows, num_chunks)
    first = torch.empty_like(largest, dtype=torch.int32)
    chunk_stats[rows, num_chunks](
        logits, logits.stride(0), logits.shape[1], None, largest, first, None, None,
        DRAWS=False, GROUPS=GROUPS, GROUP=GROUP, num_warps=WARPS,
    )  # fmt: skip
    _most_likely[rows,](
        largest, first, num_chunks, token_ids, is_finite,
        CHUNKS=triton.next_power_of_2(num_chunks), num_warps=1,
    )  # fmt: skip
    return token_ids, is_finite


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    *,
    may_cut: bool = True,
) -> Tensor:
    """One token for each row of logits [S, V] float32 → [S] int64; see kernels.reference.sample.

    temperature, top_p, min_p [S] float32; top_k [S] int64; uniform [S] float64. A row that is not
    finite gives any token of the vocabulary. may_cut: False leaves top_k, top_p and min_p unread,
    and two launches out, where the caller knows that they are off in all rows.
    """
    rows, num_chunks = row_shape(logits)
    vocabulary, stride = logits.shape[1], logits.stride(0)
    for parameter in (temperature, top_p, min_p):
        assert parameter.shape == (rows,) and parameter.dtype is torch.float32
    assert top_k.shape == (rows,) and top_k.dtype is torch.int64
    assert uniform.shape == (rows,) and uniform.dtype is torch.float64
    assert all(x.is_contiguous() for x in (temperature, top_k, top_p, min_p, uniform))
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return tokens
    grid, chunks = (rows, num_chunks), triton.next_power_of_2(num_chunks)
    largest, sums = logits.new_empty(rows, num_chunks), logits.new_empty(rows, num_chunks)
    first = torch.empty_like(largest, dtype=torch.int32)
    capacity = min(MAX_CANDIDATES, vocabulary)
    groups = counts = bounds = values = ids = None
    if may_cut:
        groups = logits.new_empty(rows, num_chunks * GROUPS)
        counts, bounds = first.new_empty(rows, num_chunks), first.new_empty(rows)
        values, ids = logits.new_empty(rows, capacity), first.new_empty(rows, capacity)
    chunk_stats[grid](
        logits, stride, vocabulary, temperature, largest, first, sums, groups,
        DRAWS=True, GROUPS=GROUPS, GROUP=GROUP, num_warps=WARPS,
    )  # fmt: skip
    if may_cut:
        count_candidates[grid](
            logits, stride, vocabulary, temperature, top_k, top_p, min_p, largest, first, sums,
            groups, num_chunks, counts, bounds, CHUNK=CHUNK, CHUNKS=chunks, GROUPS=GROUPS,
            ALL_GROUPS=triton.next_power_of_2(num_chunks * GROUPS), num_warps=WARPS,
        )  # fmt: skip
        gather_candidates[grid](
            logits, stride, vocabulary, temperature, top_k, top_p, min_p, largest, first,
            num_chunks, counts, bounds, values, ids, capacity,
            CHUNK=CHUNK, CHUNKS=chunks, num_warps=PICK_WARPS,
        )  # fmt: skip
    _draw[rows,](
        logits, stride, vocabulary, temperature, top_k, top_p, min_p, uniform, largest, first, sums,
        num_chunks, counts, bounds, values, ids, capacity, tokens,
        MAY_CUT=may_cut, CHUNK=CHUNK, CHUNKS=chunks,
        TILE=min(TILE, triton.next_power_of_2(vocabulary)), num_warps=PICK_WARPS,
    )  # fmt: skip
    return tokens


def uniform_numbers(seeds: Tensor, indices: Tensor) -> Tensor:
    """A number in [0, 1) for each seed and index of its output token, [S] int64 → [S] float64.

    Two rounds of SplitMix64's finalizer (Steele et al., 2014); the bits are those of the CPU's
    execution.sampler.uniform_numbers, the seeds being read as unsigned.
    """
    assert seeds.dtype is torch.int64 and indices.dtype is torch.int64
    assert seeds.shape == indices.shape and seeds.is_contiguous() and indices.is_contiguous()
    numbers = torch.empty_like(seeds, dtype=torch.float64)
    if len(seeds) > 0:
        _uniform_numbers[triton.cdiv(len(seeds), 128),](
            seeds, indices, numbers, len(seeds), BLOCK=128, num_warps=1
        )
    return numbers


@triton.jit
def _most_likely(largest, first, num_chunks, token_ids, are_finite, CHUNKS: tl.constexpr):
    """Grid (S,)."""
    row = tl.program_id(0).to(tl.int64)
    _, _, token, is_finite = row_stats(largest, first, row, num_chunks, CHUNKS)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(are_finite + row, is_finite)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _draw(
    logits, stride, vocabulary, temperature, top_k, top_p, min_p, uniform, largest, first, sums,
    num_chunks, counts, bounds, values, ids, capacity, tokens,
    MAY_CUT: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (S,)."""
    row = tl.program_id(0).to(tl.int64)
    tops, top, token, is_finite = row_stats(largest, first, row, num_chunks, CHUNKS)
    own = tl.load(temperature + row)
    if (own > 0) & is_finite:
        scale, number = scale_of(own), tl.load(uniform + row)
        own_sums, total = total_of(sums, row, num_chunks, tops, top, scale, CHUNKS)
        own_logits, target = logits + row * stride, number * total
        if MAY_CUT:
            k, p, least, cuts = read_cuts(row, vocabulary, top_k, top_p, min_p)
            if cuts:
                chunks = tl.arange(0, CHUNKS)
                known = counts + row * num_chunks + chunks
                count = tl.sum(tl.load(known, mask=chunks < num_chunks, other=0), 0)
                is_gathered = count <= capacity
                if is_gathered:
                    own_logits = values + row * capacity
                token = pick_candidate(
                    own_logits, tl.where(is_gathered, count, vocabulary), tl.load(bounds + row),
                    top, scale, k, p, least, total, number, TILE,
                )  # fmt: skip
                if is_gathered:
                    token = tl.load(ids + row * capacity + token)
            else:
                token = _pick_of_all(
                    own_logits, vocabulary, own_sums, target, top, scale, CHUNK, CHUNKS
                )
        else:
            token = _pick_of_all(
                own_logits, vocabulary, own_sums, target, top, scale, CHUNK, CHUNKS
            )
    tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def _pick_of_all(
    logits, vocabulary, sums, target, top, scale, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """The token at which the row's weights exceed the target: first which chunk, then which of
    it; the last with a weight where rounding keeps the sums from exceeding it."""
    chunks = tl.arange(0, CHUNKS)
    chunk = reach(tl.cumsum(sums, 0), sums, target, CHUNKS)
    chunk = tl.where(chunk < CHUNKS, chunk, last_of(sums, CHUNKS))
    before = tl.sum(tl.where(chunks < chunk, sums, 0.0), 0)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + ids, mask=ids < vocabulary, other=float("-inf"))
    weights = weights_of(x, top, scale).to(tl.float64)
    place = reach(before + tl.cumsum(weights, 0), weights, target, CHUNK)
    return chunk * CHUNK + tl.where(place < CHUNK, place, last_of(weights, CHUNK))


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=UNALIGNED)
def _uniform_numbers(seeds, indices, numbers, count, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    seed = tl.load(seeds + places, mask=inside, other=0).to(tl.uint64, bitcast=True)
    index = tl.load(indices + places, mask=inside, other=0).to(tl.uint64, bitcast=True)
    state = _mix(_mix(seed, index * 0), index)
    # 32 bits, which float64 holds as they are.
    tl.store(numbers + places, (state >> 32).to(tl.int64).to(tl.float64) * 2.0**-32, mask=inside)


@triton.jit
def _mix(state, addend):
    state += (addend + 1) * 0x9E3779B97F4A7C15
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)
