"""Prefill: chunks of prompts against what is cached, their own tokens included."""

from dataclasses import dataclass, replace

import triton
import triton.language as tl

from octavo.kernels.gpu.attention_tile import attend_tile


@dataclass(frozen=True, slots=True)
class Tiles:
    """block_m rows of queries, block_n keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By the padded head size, 64 at least, and the bytes of a query's number. Compiled for Hopper with
# keys of the query's type, each needs at most 128 KB of shared memory, and none spills registers.
CONFIGS = {
    (64, 2): Tiles(128, 64, 8, 3),
    (128, 2): Tiles(128, 64, 8, 3),
    (256, 2): Tiles(128, 32, 8, 2),
    (64, 4): Tiles(64, 32, 8, 2),
    (128, 4): Tiles(64, 16, 8, 2),
    (256, 4): Tiles(32, 16, 8, 2),
}


def prefill_tiles(padded_dim: int, query_bytes: int, group: int, *, is_quantized: bool) -> Tiles:
    """A choice of the model's shapes alone: another tile could round otherwise. Quantized keys
    take registers twice, as they are stored and as they are multiplied."""
    found = CONFIGS[max(64, padded_dim), query_bytes]
    block_n = max(16, found.block_n // 2) if is_quantized else found.block_n
    block_m = max(found.block_m, triton.next_power_of_2(group))
    return replace(found, block_m=block_m, block_n=block_n)


@triton.jit(
    do_not_specialize=("max_context", "table_stride", "num_decodes"),
    do_not_specialize_on_alignment=("block_tables", "query_start", "context_lens"),
)
def prefill_kernel(
    query, key_cache, value_cache, key_scales, value_scales,
    block_tables, query_start, context_lens, out,
    query_stride, key_stride, value_stride, key_scale_stride, value_scale_stride, table_stride,
    max_context, num_decodes, scale, cap,
    Z: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
    IS_CAPPED: tl.constexpr, IS_QUANTIZED: tl.constexpr,
):  # fmt: skip
    """Program (tile, kv head, sequence): BLOCK_M // GROUP tokens of the sequence's chunk with the
    query heads of the KV head, a row for each. The last tiles, whose contexts are the longest,
    come first. Tiles of keys that no row sees are left out."""
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    group = tl.program_id(1)
    sequence = (tl.program_id(2) + num_decodes).to(tl.int64)
    first_row = tl.load(query_start + sequence).to(tl.int64)
    length = (tl.load(query_start + sequence + 1) - first_row).to(tl.int32)
    first = tile * TOKENS  # of the tile's tokens, within the chunk
    if first >= length:
        return
    context = tl.minimum(tl.load(context_lens + sequence), max_context).to(tl.int32)
    computed = context - length  # tokens before the chunk
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, PADDED_D)
    tokens = first + rows // GROUP
    mask = ((rows < TOKENS * GROUP) & (tokens < length))[:, None] & (dims < D)[None, :]
    heads = group * GROUP + rows % GROUP
    place = heads[:, None] * D + dims[None, :]
    query_rows = (first_row + tokens)[:, None]
    q = tl.load(query + query_rows * query_stride + place, mask=mask, other=0.0)
    positions = computed + tokens
    begin = tl.maximum(computed + first - (WINDOW - 1), 0) if WINDOW > 0 else 0
    end = computed + tl.minimum(first + TOKENS, length)
    table = block_tables + sequence * table_stride
    key_cache += group * D
    value_cache += group * D
    if IS_QUANTIZED:
        key_scales += group
        value_scales += group
    acc = tl.zeros([BLOCK_M, PADDED_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    tile_begin = begin // BLOCK_N
    if WINDOW == 0:
        # What the tile's first token sees is seen by all: no mask.
        all_seen = tl.maximum(computed + first + 1, 0) // BLOCK_N
        for index in range(all_seen):
            acc, total, peak = attend_tile(
                acc, total, peak, q, positions, key_cache, value_cache, key_scales, value_scales,
                table, key_stride, value_stride, key_scale_stride, value_scale_stride,
                index * BLOCK_N, begin, end, scale, cap,
                Z, G, D, PADDED_D, BLOCK_N, WINDOW, IS_CAPPED, IS_QUANTIZED, False,
            )  # fmt: skip
        tile_begin = all_seen
    for index in range(tile_begin, tl.cdiv(tl.maximum(end, 0), BLOCK_N)):
        acc, total, peak = attend_tile(
            acc, total, peak, q, positions, key_cache, value_cache, key_scales, value_scales,
            table, key_stride, value_stride, key_scale_stride, value_scale_stride,
            index * BLOCK_N, begin, end, scale, cap,
            Z, G, D, PADDED_D, BLOCK_N, WINDOW, IS_CAPPED, IS_QUANTIZED, True,
        )  # fmt: skip
    attended = acc / tl.where(total == 0, 1.0, total)[:, None]
    start = out + query_rows * (G * GROUP * D)
    tl.store(start + place, attended.to(out.dtype.element_ty), mask=mask)
