"""Penalties of tokens that have come before, from a state that stays on the GPU.

`history` [R, V] int32 has a row for each sequence in the batch's slots: for each token twice its
count in the output, plus 1 if the prompt has it. One number for both, because a pass then reads
4 bytes a token, and 4 more only of the few that have come before; int32, because the hardware adds
no smaller ones, and two tokens of a step may be the same. 256 rows of 151,936 tokens take 156 MB.
A slot is cleared with `history[slot].zero_()` before its sequence's prompt is marked.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8  # tokens of a program, to be tuned
UPDATES = 128  # of a program
# Views of one buffer may start anywhere: another alignment is no reason to compile in service.
UNALIGNED = ("slots", "token_ids", "repetition", "frequency", "presence")


def penalize_rows(
    logits: Tensor,
    history: Tensor,
    slots: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """kernels.reference.penalize of each row of logits [S, V] float32, in place.

    slots [S] int64: each row's in `history`; a row with −1 is left alone. repetition, frequency,
    presence [S] float32: 1, 0 and 0 change nothing, and such a row costs nothing but its launch.
    """
    rows, vocabulary = logits.shape
    assert logits.dtype is torch.float32 and (logits.stride(1) == 1 or vocabulary == 1)
    _check(history, slots, vocabulary)
    for parameter in (repetition, frequency, presence):
        assert parameter.shape == (rows,) and parameter.dtype is torch.float32
        assert parameter.is_contiguous()
    assert slots.shape == (rows,)
    if rows > 0:
        _penalize[rows, triton.cdiv(vocabulary, BLOCK)](
            logits, logits.stride(0), vocabulary, history, len(history), slots,
            repetition, frequency, presence, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def count_tokens(history: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """Adds tokens of the output, [K] int64, each to its slot's row, [K] int64, of `history`. What
    lies outside of it, −1 say, is left out; a pair may come more than once."""
    _update(history, slots, token_ids, is_prompt=False)


def mark_prompt(history: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """As count_tokens, for tokens of the prompt."""
    _update(history, slots, token_ids, is_prompt=True)


def _update(history: Tensor, slots: Tensor, token_ids: Tensor, is_prompt: bool) -> None:
    _check(history, slots, history.shape[1])
    assert token_ids.shape == slots.shape and token_ids.dtype is torch.int64
    assert token_ids.is_contiguous()
    if len(slots) > 0:
        _update_history[triton.cdiv(len(slots), UPDATES),](
            history, len(history), history.shape[1], slots, token_ids, len(slots),
            IS_PROMPT=is_prompt, BLOCK=UPDATES, num_warps=4,
        )  # fmt: skip


def _check(history: Tensor, slots: Tensor, vocabulary: int) -> None:
    assert history.dim() == 2 and history.shape[1] == vocabulary and history.is_contiguous()
    assert history.dtype is torch.int32
    assert slots.dim() == 1 and slots.dtype is torch.int64 and slots.is_contiguous()


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _penalize(
    logits, stride, vocabulary, history, num_slots, slots, repetition, frequency, presence,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (S, blocks of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    repeated, often = tl.load(repetition + row), tl.load(frequency + row)
    present = tl.load(presence + row)
    is_neutral = (repeated == 1) & (often == 0) & (present == 0)
    if (slot >= 0) & (slot < num_slots) & (is_neutral == 0):
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        own = history + slot * vocabulary + ids
        known = tl.load(own, mask=ids < vocabulary, other=0)
        is_seen = known > 0
        places = logits + row * stride + ids
        x = tl.load(places, mask=is_seen, other=0.0)
        x = tl.where(x > 0, tl.div_rn(x, tl.broadcast_to(repeated, (BLOCK,))), x * repeated)
        count = known >> 1
        x = x - often * count.to(tl.float32) - present * (count > 0).to(tl.float32)
        tl.store(places, x, mask=is_seen)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=UNALIGNED)
def _update_history(
    history, num_slots, vocabulary, slots, token_ids, count,
    IS_PROMPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (updates / BLOCK,)."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + places, mask=places < count, other=-1)
    token = tl.load(token_ids + places, mask=places < count, other=-1)
    inside = (slot >= 0) & (slot < num_slots) & (token >= 0) & (token < vocabulary)
    # Whole numbers, so the order in which they are added changes nothing.
    if IS_PROMPT:
        tl.atomic_or(history + slot * vocabulary + token, 1, mask=inside, sem="relaxed")
    else:
        tl.atomic_add(history + slot * vocabulary + token, 2, mask=inside, sem="relaxed")
