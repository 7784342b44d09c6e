"""Paged attention of a step: the decodes in one launch or two, the prefills in another one.

Letters in shapes are those of `reference_kv`.
"""

import math
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from octavo.kernels.gpu.attention_decode import (
    SPLIT_TOKENS,
    choose_splits,
    decode_kernel,
    decode_tile,
    max_splits,
    num_slots,
    reduce_kernel,
)
from octavo.kernels.gpu.attention_prefill import prefill_kernel, prefill_tiles

__all__ = ["choose_splits", "paged_attention"]

_LOG2_E = math.log2(math.e)
_QUANTIZED = (torch.int8, torch.float8_e4m3fn)
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    max_query_len: int,
    num_splits: int | None = None,
) -> Tensor:
    """reference_kv.paged_attention, and:

    query [T, H, D]: its first dimension may have any stride
    Z is a power of two from 16 on, D a multiple of 8 up to 256
    block_tables [S, B], query_start, context_lens: int32 or int64. A context of 0 tokens, which
        pads a CUDA graph's rows, gives zeros; one longer than B · Z is taken as B · Z
    max_query_len: at least the longest chunk among the sequences that do not decode
    num_splits: programs that share the splits of a decode's context; choose_splits' number
        if None

    The bits of a token's row depend on its own sequence alone (the chunk and the context), and
    on the model's shapes and types: not on other rows, S, B, num_splits or max_query_len.
    """
    _, heads, dim = query.shape
    _, block_size, groups, _ = key_cache.shape
    _check(query, key_cache, value_cache, key_scales, value_scales)
    num_sequences, columns = block_tables.shape
    assert block_tables.stride(1) == 1 and query_start.stride() == context_lens.stride() == (1,)
    assert len(query_start) == num_sequences + 1 == len(context_lens) + 1, block_tables.shape
    assert 0 <= num_decodes <= num_sequences, (num_decodes, num_sequences)
    assert (window is None or window > 0) and (num_splits is None or num_splits > 0)

    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    scales = (key_scales, value_scales)
    tensors = (query, key_cache, value_cache, *scales, block_tables)
    strides = (
        *(part.stride(0) for part in (query, key_cache, value_cache)),
        *(0 if part is None else part.stride(0) for part in scales),
        block_tables.stride(0),
    )
    max_context = columns * block_size
    # The kernels raise 2 to the scores, so they are told e's powers in powers of 2.
    factors = (scale * _LOG2_E, 0.0) if softcap is None else (scale / softcap, softcap * _LOG2_E)
    padded_dim, group = max(16, triton.next_power_of_2(dim)), heads // groups
    shape: dict[str, Any] = {
        "Z": block_size, "G": groups, "D": dim, "PADDED_D": padded_dim, "GROUP": group,
        "WINDOW": window or 0, "IS_CAPPED": softcap is not None,
        "IS_QUANTIZED": key_scales is not None,
    }  # fmt: skip

    if num_decodes > 0:
        tile = decode_tile(padded_dim, max(query.itemsize, key_cache.itemsize))
        splits = {"SPLIT_TILES": SPLIT_TOKENS // tile, "MAX_SPLITS": max_splits(groups)}
        longest = max_context if window is None else min(max_context, window + tile)
        slots = num_slots(groups, longest)
        if num_splits is None:
            num_splits = choose_splits(num_decodes, groups, _num_sms(query.device), longest)
        rows = (num_decodes, heads, slots if slots > 1 else 0)
        partial_out, partial_stats = (
            torch.empty(*rows, width, dtype=torch.float32, device=query.device)
            for width in (dim, 2)
        )
        decode_kernel[groups, num_decodes, min(num_splits, slots)](
            *tensors, context_lens, out, partial_out, partial_stats,
            *strides, max_context, slots, *factors, **shape, **splits,
            BLOCK_M=max(16, triton.next_power_of_2(group)), BLOCK_N=tile,
            num_warps=4, num_stages=3,
        )  # fmt: skip
        if slots > 1:
            reduce_kernel[heads, num_decodes](
                partial_out, partial_stats, context_lens, out, max_context, slots,
                D=dim, PADDED_D=padded_dim, BLOCK_N=tile, WINDOW=window or 0, **splits,
                SLOTS=16, num_warps=4,
            )  # fmt: skip
    if num_decodes < num_sequences and max_query_len > 0:
        tiles = prefill_tiles(
            padded_dim, query.itemsize, group, is_quantized=key_scales is not None
        )
        num_tiles = triton.cdiv(max_query_len, tiles.block_m // group)
        prefill_kernel[num_tiles, groups, num_sequences - num_decodes](
            *tensors, query_start, context_lens, out,
            *strides, max_context, num_decodes, *factors, **shape,
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return out


def _check(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    (_, heads, dim), (_, block_size, groups, _) = query.shape, key_cache.shape
    assert dim % 8 == 0 and 0 < dim <= 256 and heads % groups == 0, (query.shape, key_cache.shape)
    assert block_size >= 16 and block_size & (block_size - 1) == 0, block_size
    assert query.dtype in _TYPES and key_cache.dtype in (*_TYPES, *_QUANTIZED), key_cache.dtype
    assert query[:1].is_contiguous(), query.stride()
    for cache_part, scales in ((key_cache, key_scales), (value_cache, value_scales)):
        assert cache_part.shape == (*key_cache.shape[:3], dim), cache_part.shape
        assert cache_part.dtype == key_cache.dtype and cache_part[0].is_contiguous()
        assert (scales is not None) == (key_cache.dtype in _QUANTIZED), key_cache.dtype
        if scales is not None:
            assert scales.shape == key_cache.shape[:3] and scales.dtype == torch.float16
            assert scales[0].is_contiguous(), scales.stride()


@cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
