"""Log probability and rank of chosen tokens, without a log softmax of the vocabulary in memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.sampling_chunks import CHUNK, UNALIGNED, WARPS, row_shape


def chosen_logprobs(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of logits [S, V] float32 the natural logarithm of its token's probability, [S]
    float32, and the token's rank, [S] int64. token_ids [S] int64.

    Rank 1 is the most likely token, and of equal ones the one with the smaller id comes first, so
    that ranks are distinct. Logits are compared: log probabilities of different ones may round to
    the same. A token outside of the vocabulary, and any in a row with NaN or +∞, has NaN.
    """
    rows, num_chunks = row_shape(logits)
    assert token_ids.shape == (rows,) and token_ids.dtype is torch.int64
    assert token_ids.is_contiguous()
    logprobs, ranks = logits.new_empty(rows), torch.empty_like(token_ids)
    if rows == 0:
        return logprobs, ranks
    largest, sums = logits.new_empty(rows, num_chunks), logits.new_empty(rows, num_chunks)
    before = torch.empty_like(largest, dtype=torch.int32)
    _chunk_sums[rows, num_chunks](
        logits, logits.stride(0), logits.shape[1], token_ids, largest, sums, before,
        CHUNK=CHUNK, num_warps=WARPS,
    )  # fmt: skip
    _logprobs[rows,](
        logits, logits.stride(0), logits.shape[1], token_ids, largest, sums, before, num_chunks,
        logprobs, ranks, CHUNKS=triton.next_power_of_2(num_chunks), num_warps=1,
    )  # fmt: skip
    return logprobs, ranks


@triton.jit
def _load_chosen(logits, vocabulary, token):
    return tl.load(logits + token, mask=(token >= 0) & (token < vocabulary), other=float("nan"))


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _chunk_sums(
    logits, stride, vocabulary, token_ids, largest, sums, before, CHUNK: tl.constexpr
):  # fmt: skip
    """Grid (S, chunks). Each chunk's largest logit, the sum of exp(logit − largest), and how many
    tokens come before the chosen one."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    token = tl.load(token_ids + row)
    chosen = _load_chosen(logits + row * stride, vocabulary, token)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = ids < vocabulary
    x = tl.load(logits + row * stride + ids, mask=inside, other=float("-inf"))
    top = tl.max(x, 0)
    # A chunk of −∞ alone would give −∞ − −∞; one with NaN gives NaN.
    base = tl.where(top == float("-inf"), 0.0, top)
    tl.store(largest + at, top)
    tl.store(sums + at, tl.sum(tl.exp(x - base), 0))
    comes_before = inside & ((x > chosen) | ((x == chosen) & (ids < token)))
    tl.store(before + at, tl.sum(comes_before.to(tl.int32), 0))


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _logprobs(
    logits, stride, vocabulary, token_ids, largest, sums, before, num_chunks, logprobs, ranks,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Grid (S,)."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS)
    inside, at = chunks < num_chunks, row * num_chunks + chunks
    tops = tl.load(largest + at, mask=inside, other=float("-inf"))
    own = tl.load(sums + at, mask=inside, other=0.0)
    top = tl.max(tops, 0)
    total = tl.sum(own * tl.exp(tops - top), 0)
    chosen = _load_chosen(logits + row * stride, vocabulary, tl.load(token_ids + row))
    tl.store(logprobs + row, chosen - top - tl.log(total))
    count = tl.sum(tl.load(before + at, mask=inside, other=0), 0)
    tl.store(ranks + row, count.to(tl.int64) + 1)
