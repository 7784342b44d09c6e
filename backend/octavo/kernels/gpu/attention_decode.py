"""Decode: one token of each sequence against its context, which is split among programs.

Flash-decoding (Dao et al., 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html), with
splits that are a row's own: how many tokens they have is said by its context alone. So the same
bits come out in every batch and for every number of programs, which only share out the splits.
"""

import triton
import triton.language as tl

from octavo.kernels.gpu.attention_tile import attend_tile

# Shorter ones would cost more in partial sums: of 4 heads with 16 bit keys 256 tokens cost 3 %.
SPLIT_TOKENS = 256
_PROGRAMS_PER_SM = 8


def max_splits(num_kv_heads: int) -> int:
    """Of a row: its longest contexts have longer splits. As many as fill a GPU of some 130
    processors twice with one sequence; more would be scratch memory and reduction."""
    return max(16, min(128, triton.next_power_of_2(256 // num_kv_heads)))


def num_slots(num_kv_heads: int, max_context: int) -> int:
    """The most splits that a row of a context of at most `max_context` tokens has."""
    return max(1, min(max_splits(num_kv_heads), triton.cdiv(max_context, SPLIT_TOKENS)))


def choose_splits(num_sequences: int, num_kv_heads: int, num_sms: int, max_context: int) -> int:
    """How many programs share the splits of each row and KV head: enough to fill the GPU, no
    more than there can be splits. A number of the launch, the same for every context in it."""
    wanted = triton.cdiv(_PROGRAMS_PER_SM * num_sms, num_sequences * num_kv_heads)
    return min(wanted, num_slots(num_kv_heads, max_context))


def decode_tile(padded_dim: int, num_bytes: int) -> int:
    """Keys of a tile: 16 KB of them, at `num_bytes` for the larger one of a query's and a stored
    number, so that they fit the registers as they are multiplied, and several tiles are in
    flight on a processor."""
    return max(16, min(128, 16384 // (padded_dim * num_bytes)))


@triton.jit
def _plan(
    context_lens, sequence, max_context,
    BLOCK_N: tl.constexpr, WINDOW: tl.constexpr, SPLIT_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """The row's context, where its window begins, the tiles of a split, how many splits."""
    context = tl.minimum(tl.load(context_lens + sequence), max_context).to(tl.int32)
    begin = tl.maximum(context - WINDOW, 0) if WINDOW > 0 else 0
    tiles = tl.cdiv(context, BLOCK_N) - begin // BLOCK_N
    split_tiles = tl.maximum(SPLIT_TILES, tl.cdiv(tiles, MAX_SPLITS))
    return context, begin, split_tiles, tl.cdiv(tiles, split_tiles)


@triton.jit(
    do_not_specialize=("max_context", "table_stride", "num_slots"),
    do_not_specialize_on_alignment=("block_tables", "context_lens"),
)
def decode_kernel(
    query, key_cache, value_cache, key_scales, value_scales, block_tables, context_lens,
    out, partial_out, partial_stats,
    query_stride, key_stride, value_stride, key_scale_stride, value_scale_stride, table_stride,
    max_context, num_slots, scale, cap,
    Z: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
    IS_CAPPED: tl.constexpr, IS_QUANTIZED: tl.constexpr,
    SPLIT_TILES: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (kv head, sequence, part): every `parts`-th split of the sequence's context.

    partial_out [S, H, num_slots, D], partial_stats [S, H, num_slots, 2] (peak, total) float32:
    of each split, if there are several; a single one is written to `out` at once.
    """
    group, part, parts = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    sequence = tl.program_id(1).to(tl.int64)
    context, begin, split_tiles, num_splits = _plan(
        context_lens, sequence, max_context, BLOCK_N, WINDOW, SPLIT_TILES, MAX_SPLITS
    )
    if part >= tl.maximum(num_splits, 1):
        return
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, PADDED_D)
    mask = (rows < GROUP)[:, None] & (dims < D)[None, :]
    heads = group * GROUP + rows
    place = heads[:, None] * D + dims[None, :]
    q = tl.load(query + sequence * query_stride + place, mask=mask, other=0.0)
    positions = tl.zeros([BLOCK_M], tl.int32) + (context - 1)
    first_tile, end_tile = begin // BLOCK_N, tl.cdiv(context, BLOCK_N)
    key_cache += group * D
    value_cache += group * D
    if IS_QUANTIZED:
        key_scales += group
        value_scales += group
    # An empty context, a padded row of a CUDA graph, is one split without a tile.
    for split in range(part, tl.maximum(num_splits, 1), parts):
        acc = tl.zeros([BLOCK_M, PADDED_D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        tile = first_tile + split * split_tiles
        for index in range(tile, tl.minimum(tile + split_tiles, end_tile)):
            acc, total, peak = attend_tile(
                acc, total, peak, q, positions, key_cache, value_cache, key_scales, value_scales,
                block_tables + sequence * table_stride,
                key_stride, value_stride, key_scale_stride, value_scale_stride,
                index * BLOCK_N, begin, context, scale, cap,
                Z, G, D, PADDED_D, BLOCK_N, WINDOW, IS_CAPPED, IS_QUANTIZED, True,
            )  # fmt: skip
        if num_splits <= 1:
            attended = acc / tl.where(total == 0, 1.0, total)[:, None]
            start = out + sequence * (G * GROUP * D)
            tl.store(start + place, attended.to(out.dtype.element_ty), mask=mask)
        else:
            slots = (sequence * (G * GROUP) + heads) * num_slots + split
            tl.store(partial_out + slots[:, None] * D + dims[None, :], acc, mask=mask)
            tl.store(partial_stats + slots * 2, peak, mask=rows < GROUP)
            tl.store(partial_stats + slots * 2 + 1, total, mask=rows < GROUP)


@triton.jit(
    do_not_specialize=("max_context", "num_slots"),
    do_not_specialize_on_alignment=("context_lens",),
)
def reduce_kernel(
    partial_out, partial_stats, context_lens, out, max_context, num_slots,
    D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
    SPLIT_TILES: tl.constexpr, MAX_SPLITS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Program (head, sequence): its splits into one, always in their order, SLOTS at a time."""
    sequence = tl.program_id(1).to(tl.int64)
    _, _, _, num_splits = _plan(
        context_lens, sequence, max_context, BLOCK_N, WINDOW, SPLIT_TILES, MAX_SPLITS
    )
    if num_splits <= 1:
        return
    row = sequence * tl.num_programs(0) + tl.program_id(0)
    stats = partial_stats + row * num_slots * 2
    slots = tl.arange(0, MAX_SPLITS)
    peaks = tl.load(stats + slots * 2, mask=slots < num_splits, other=float("-inf"))
    totals = tl.load(stats + slots * 2 + 1, mask=slots < num_splits, other=0.0)
    peak = tl.max(peaks, 0)
    total = tl.sum(totals * tl.exp2(peaks - peak), 0)
    dims = tl.arange(0, PADDED_D)
    acc = tl.zeros([PADDED_D], tl.float32)
    for begin in range(0, num_splits, SLOTS):
        some = begin + tl.arange(0, SLOTS)
        inside = some < num_splits
        weights = tl.exp2(tl.load(stats + some * 2, mask=inside, other=float("-inf")) - peak)
        part = tl.load(
            partial_out + (row * num_slots + some)[:, None] * D + dims[None, :],
            mask=inside[:, None] & (dims < D)[None, :], other=0.0,
        )  # fmt: skip
        acc += tl.sum(part * weights[:, None], 0)
    attended = (acc / total).to(out.dtype.element_ty)
    tl.store(out + row * D + dims, attended, mask=dims < D)
