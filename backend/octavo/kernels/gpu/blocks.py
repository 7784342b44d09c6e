"""Whole blocks of KV memory, moved: out of the pool into rows side by side, back, and within it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORD_BYTES = 8
_BLOCK_WORDS = 1024


def gather_blocks(storage: Tensor, blocks: Tensor) -> Tensor:
    """storage [num_blocks, block_bytes] uint8, blocks [n] int64 → [n, block_bytes]. Rows of blocks
    that the pool does not have are zeros."""
    rows = storage.new_empty(len(blocks), storage.shape[1])
    _move(storage, blocks, rows, is_gather=True)
    return rows


def scatter_blocks(storage: Tensor, blocks: Tensor, rows: Tensor) -> None:
    """Writes rows [n, block_bytes] to `blocks` [n] int64, all different, of storage. Rows for
    blocks that the pool does not have are dropped."""
    assert rows.shape == (len(blocks), storage.shape[1]), rows.shape
    assert rows.dtype is torch.uint8 and rows.is_contiguous()
    _move(storage, blocks, rows, is_gather=False)


def _move(storage: Tensor, blocks: Tensor, rows: Tensor, *, is_gather: bool) -> None:
    num_bytes = storage.shape[1]
    assert storage.dtype is torch.uint8 and storage.is_contiguous() and blocks.is_contiguous()
    assert num_bytes % _WORD_BYTES == 0, f"blocks of {num_bytes} bytes"
    if len(blocks):
        words = num_bytes // _WORD_BYTES
        _move_kernel[len(blocks), triton.cdiv(words, _BLOCK_WORDS)](
            storage.view(torch.int64), blocks, rows.view(torch.int64), len(storage), words,
            IS_GATHER=is_gather, BLOCK=_BLOCK_WORDS,
        )  # fmt: skip


@triton.jit
def _move_kernel(
    storage, blocks, rows, num_blocks, words, IS_GATHER: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    block = tl.load(blocks + row).to(tl.int64)
    inside = columns < words
    in_both = inside & (block >= 0) & (block < num_blocks)
    in_pool = storage + block * words + columns
    in_rows = rows + row * words + columns
    if IS_GATHER:
        tl.store(in_rows, tl.load(in_pool, mask=in_both, other=0), mask=inside)
    else:
        tl.store(in_pool, tl.load(in_rows, mask=inside, other=0), mask=in_both)
