"""The operators that know KV memory in plain torch: writing it, and attention that reads it.

Letters in shapes: T tokens, S sequences, H query heads, G key-value heads (H a multiple of G),
D head_dim, B blocks of a table, Z tokens of a block.

A cache [blocks, Z, G, D] is one layer's keys or values; its first dimension may have any stride.
Its type may be another one than the computation's. An int8 or float8_e4m3fn cache comes with
scales [blocks, Z, G] float16: number = stored · scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.reference import apply_rope, apply_softcap, rms_norm

# The largest stored number of each quantized type.
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_LARGEST_SCALE = torch.finfo(torch.float16).max


def store_kv(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> None:
    """Writes keys, values [T, G, D] into the caches [blocks, Z, G, D] of one layer, in place.

    slot_mapping [T]: block · Z + offset, or −1 to skip the token.
    key_scales, value_scales [blocks, Z, G] are written with quantized caches.
    """
    if bool((slot_mapping < 0).any()):
        kept = slot_mapping >= 0
        keys, values, slot_mapping = keys[kept], values[kept], slot_mapping[kept]
    block_size = key_cache.shape[1]
    slots = (slot_mapping // block_size, slot_mapping % block_size)
    for numbers, cache, scales in (
        (keys, key_cache, key_scales),
        (values, value_cache, value_scales),
    ):
        if scales is None:
            cache.index_put_(slots, cast_kv(numbers, cache.dtype))
        else:
            stored, own_scales = quantize_kv(numbers, cache.dtype)
            cache.index_put_(slots, stored)
            scales.index_put_(slots, own_scales)


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
    """What becomes of the product with the stacked weights before attention: queries and keys
    are normed and rotated, keys and values stored.

    qkv [T, H + 2 G, D]; qk_norm [H + G, D], a weight of rms_norm with `eps`, or None
    cosines, sines [T, R/2]: see apply_rope; the others: see store_kv
    → queries [T, H, D]
    """
    num_qk = num_heads + key_cache.shape[2]
    qk, values = qkv[:, :num_qk], qkv[:, num_qk:]
    if qk_norm is not None:
        qk = rms_norm(qk, qk_norm, eps)
    qk = apply_rope(qk, cosines, sines)
    store_kv(
        qk[:, num_heads:], values, key_cache, value_cache, slot_mapping, key_scales, value_scales
    )
    return qk[:, :num_heads]


def cast_kv(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, where what is beyond its largest number becomes that, and only infinities
    stay infinite."""
    if x.dtype == dtype:
        return x
    largest = torch.finfo(dtype).max
    if largest < torch.finfo(x.dtype).max:
        wide = x.float()
        x = torch.where(wide.isinf(), wide, wide.clamp(-largest, largest))
    return x.to(dtype)


def quantize_kv(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, G, D] → stored [T, G, D] of `dtype`, int8 or float8_e4m3fn, and scales [T, G] float16.

    Symmetric, by the largest of a token's and head's numbers: scale = max |x| / 127 (or 448). The
    numbers are divided by the scale as it is stored, so that its rounding costs nothing. A scale
    stops at the largest float16: numbers beyond 127 (448) times that, 8.3 (29) million, become
    that. What is not finite makes its token's scale so, and what is read back is not a number.
    """
    largest = _LARGEST[dtype]
    wide = x.float()
    peak = wide.abs().amax(-1)
    # clamp keeps NaN; an infinity has to be kept from it.
    scales = torch.where(peak.isinf(), peak, (peak / largest).clamp(max=_LARGEST_SCALE)).half()
    divisor = scales.float().masked_fill(scales == 0, 1.0).unsqueeze(-1)
    quotient = wide / divisor
    if dtype is torch.int8:
        quotient.round_()
    return quotient.clamp_(-largest, largest).to(dtype), scales


def dequantize_kv(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """stored [..., D] · scales [...] in float32 → [..., D] of `dtype`."""
    return stored.float().mul_(scales.float().unsqueeze(-1)).to(dtype)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    num_decodes: int,
    scale: float,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int | None = None,
) -> Tensor:
    """Causal attention of each token to its own sequence's cached tokens.

    query [T, H, D]: sequence after sequence, the first `num_decodes` with one token each
    key_cache, value_cache [blocks, Z, G, D], where what lies behind a context may be NaN
    key_scales, value_scales [blocks, Z, G]: of quantized caches
    block_tables [S, B]: of a block behind a context, or before every window, any id of the cache
    query_start [S + 1]: where each sequence's tokens begin
    context_lens [S]: cached tokens, those of the query included, which are its last
    window: a token at position p attends to positions above p − window only, and blocks that
        lie before all of these are not read
    softcap: the cap of apply_softcap on the scaled scores
    max_query_len: no sequence has more tokens; for those who must know it without asking a device
    → [T, H, D]
    """
    out = torch.empty_like(query)
    lengths = query_start.diff()
    for rows, widest in ((slice(0, num_decodes), 1), (slice(num_decodes, None), max_query_len)):
        lens = lengths[rows]
        if len(lens) == 0:
            continue
        width = widest or int(lens.max())
        # Token j of a shorter sequence is a copy of its last one, written last to its place.
        offsets = torch.minimum(torch.arange(width, device=query.device), lens[:, None] - 1)
        tokens = query_start[:-1][rows][:, None] + offsets  # [S, width]
        positions = (context_lens[rows] - lens)[:, None] + offsets
        tables, contexts = block_tables[rows], context_lens[rows]
        if window is not None:
            tables, contexts, positions = _skip_blocks(
                tables, contexts, positions, window, key_cache.shape[1]
            )
        keys, values = _gather(
            ((key_cache, key_scales), (value_cache, value_scales)), tables, contexts, query.dtype
        )
        out[tokens] = _padded_attention(
            query[tokens], keys, values, positions, scale, window, softcap
        )
    return out


def _skip_blocks(
    tables: Tensor, lens: Tensor, positions: Tensor, window: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """tables [S, B], lens [S] and positions [S, Q] of the same contexts without their first
    blocks, as far as no query's window reaches them."""
    skipped = (positions[:, 0] - (window - 1)).clamp_(min=0) // block_size
    columns = skipped[:, None] + torch.arange(tables.shape[1], device=tables.device)
    tables = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))
    return tables, lens - skipped * block_size, positions - skipped[:, None] * block_size


def _gather(
    caches: tuple[tuple[Tensor, Tensor | None], ...],
    tables: Tensor,
    lens: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The contexts of `lens` [S] out of each cache and its scales: [S, C, G, D] of `dtype`, C at
    least the longest.

    Whole blocks are taken, as tokens one by one take several times as long. Behind a shorter
    context stands its own first block, and zeros for what is behind a context in its last block:
    the mask takes them out, where another sequence's NaN would stay, as 0 × NaN is NaN.
    """
    longest, block_size = int(lens.max()), caches[0][0].shape[1]
    columns = torch.arange(-(-longest // block_size), device=lens.device)
    columns = columns * (columns * block_size < lens[:, None])  # [S, B]
    blocks = tables.gather(1, columns).flatten()
    taken = min(block_size, longest)  # of each block: one may be far longer than any context
    positions = columns[:, :, None] * block_size + torch.arange(taken, device=lens.device)
    behind = (positions >= lens[:, None, None]).flatten().nonzero().squeeze(1)

    def gathered(cache: Tensor) -> Tensor:
        rows = cache[:, :taken].index_select(0, blocks)
        return rows.view(len(lens), -1, *cache.shape[2:])

    contexts = []
    for cache, scales in caches:
        if scales is None:
            context = gathered(cache).to(dtype)
        else:
            context = dequantize_kv(gathered(cache), gathered(scales), dtype)
        context.flatten(0, 1).index_fill_(0, behind, 0)
        contexts.append(context)
    return contexts


def _capped_attention(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, cap: float
) -> Tensor:
    """What scaled_dot_product_attention has no argument for: capped scores, in float32."""
    scores = apply_softcap(query.float() @ keys.float().transpose(2, 3) * scale, cap)
    weights = scores.masked_fill_(~visible, -torch.inf).softmax(-1)
    return weights.to(values.dtype) @ values


def _padded_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """query [S, Q, H, D] at positions [S, Q]; keys, values [S, C, G, D] → [S, Q, H, D].

    The H/G query heads of a group are folded into the query's length, so that keys and values
    are never repeated.
    """
    sequences, width, heads, dim = query.shape
    groups = keys.shape[2]
    folded = query.view(sequences, width, groups, heads // groups, dim).permute(0, 2, 3, 1, 4)
    folded = folded.flatten(2, 3)
    key_positions = torch.arange(keys.shape[1], device=query.device)
    visible = key_positions <= positions[:, :, None]
    if window is not None:
        visible &= key_positions > positions[:, :, None] - window
    visible = visible[:, None, None].expand(-1, 1, heads // groups, -1, -1).flatten(2, 3)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if softcap is None:
        attended = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=visible, scale=scale
        )
    else:
        attended = _capped_attention(folded, keys, values, visible, scale, softcap)
    unfolded = attended.view(sequences, groups, heads // groups, width, dim)
    return unfolded.permute(0, 3, 1, 2, 4).reshape(sequences, width, heads, dim)


def gather_blocks(storage: Tensor, blocks: Tensor) -> Tensor:
    """storage [num_blocks, block_bytes] uint8, blocks [n] int64 → copies [n, block_bytes]."""
    return storage.index_select(0, blocks)


def scatter_blocks(storage: Tensor, blocks: Tensor, rows: Tensor) -> None:
    """Writes rows [n, block_bytes] to `blocks` [n] int64, all different, of storage."""
    storage.index_copy_(0, blocks, rows)
