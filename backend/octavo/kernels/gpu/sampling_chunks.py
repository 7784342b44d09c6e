"""What the kernels of `sampling` share: a row of logits is looked at by chunks, in parallel.

Each chunk leaves a few numbers in memory, [S, chunks], and those of a row are added in their order:
a row's bits are its own, whatever the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens of a chunk: so many groups of so many. The k largest of the groups' maxima are k tokens, so
# that many small groups bound a top_k well. To be tuned together with the warps of a program.
GROUPS, GROUP = 16, 256
CHUNK = GROUPS * GROUP
WARPS = 4

# Views of one buffer may start anywhere: another alignment is no reason to compile in service.
UNALIGNED = ("temperature", "top_k", "top_p", "min_p", "uniform", "token_ids", "seeds", "indices")

NO_TOKEN = tl.constexpr(2**31 - 1)
LEAST_SCALE, MOST_SCALE = tl.constexpr(2.0**-126), tl.constexpr(3.4028234663852886e38)


def row_shape(logits: Tensor) -> tuple[int, int]:
    """Rows and chunks of a row; asserts that the kernels can read logits [S, V]."""
    assert logits.dim() == 2 and logits.dtype is torch.float32 and logits.shape[1] > 0
    assert logits.stride(1) == 1 or logits.shape[1] == 1
    return logits.shape[0], triton.cdiv(logits.shape[1], CHUNK)


@triton.jit
def scale_of(temperature):
    # Finite and above zero, for −∞ of a logit to stay so and zero of the largest.
    return tl.minimum(tl.maximum(1.0 / temperature, LEAST_SCALE), MOST_SCALE)


@triton.jit
def weights_of(x, largest, scale):
    """Probabilities relative to that of the logit `largest`, which has 1."""
    return tl.exp((x - largest) * scale)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def chunk_stats(
    logits, stride, vocabulary, temperature, largest, first, sums, groups,
    DRAWS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (S, chunks). Each chunk's largest logit, NaN if there is one, and the first token that
    has it. With DRAWS for rows that are drawn: the sum of weights relative to the chunk's largest
    and, where there is memory for them, the largest logit of each group."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    ids = chunk * GROUPS * GROUP + tl.arange(0, GROUPS)[:, None] * GROUP
    ids += tl.arange(0, GROUP)[None, :]
    inside = ids < vocabulary
    x = tl.load(logits + row * stride + ids, mask=inside, other=float("-inf"))
    is_nan = x != x
    x = tl.where(is_nan, float("-inf"), x)
    group_tops = tl.max(x, 1)
    top = tl.max(group_tops, 0)
    has_nan = tl.max(tl.max(is_nan.to(tl.int32), 1), 0) > 0
    tl.store(largest + at, tl.where(has_nan, float("nan"), top))
    tl.store(first + at, tl.min(tl.min(tl.where(inside & (x == top), ids, NO_TOKEN), 1), 0))
    if DRAWS:
        own = tl.load(temperature + row)
        if own > 0:
            # A chunk of −∞ alone would give −∞ − −∞.
            base = tl.where(top == float("-inf"), 0.0, top)
            tl.store(sums + at, tl.sum(tl.sum(weights_of(x, base, scale_of(own)), 1), 0))
            if groups is not None:
                tl.store(groups + at * GROUPS + tl.arange(0, GROUPS), group_tops)


@triton.jit
def row_stats(largest, first, row, num_chunks, CHUNKS: tl.constexpr):
    """The chunks' largest logits, the row's own, the first token that has it, and whether all is
    finite but for some −∞. CHUNKS: a power of two not below num_chunks."""
    chunks = tl.arange(0, CHUNKS)
    inside = chunks < num_chunks
    tops = tl.load(largest + row * num_chunks + chunks, mask=inside, other=float("-inf"))
    firsts = tl.load(first + row * num_chunks + chunks, mask=inside, other=NO_TOKEN)
    is_nan = tops != tops
    has_nan = tl.max(is_nan.to(tl.int32), 0) > 0
    tops = tl.where(is_nan, float("-inf"), tops)
    top = tl.max(tops, 0)
    token = tl.min(tl.where(tops == top, firsts, NO_TOKEN), 0)
    is_finite = (top > float("-inf")) & (top < float("inf")) & (has_nan == 0)
    return tops, top, token, is_finite


@triton.jit
def reach(cumulative, weights, target, COUNT: tl.constexpr):
    """The first place with a weight where the cumulative sum exceeds the target; COUNT if there is
    none. A place without weight never is: a parallel sum may fall by a rounding."""
    places = tl.arange(0, COUNT)
    return tl.min(tl.where((cumulative > target) & (weights > 0), places, COUNT), 0)


@triton.jit
def last_of(weights, COUNT: tl.constexpr):
    """The last place with a weight, −1 if there is none."""
    return tl.max(tl.where(weights > 0, tl.arange(0, COUNT), -1), 0)
