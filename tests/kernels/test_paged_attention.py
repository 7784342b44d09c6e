"""store_kv and paged_attention against loops over tokens in float64."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import kernels

PRECISIONS = [
    pytest.param(torch.float32, 2e-6, id="float32"),
    pytest.param(torch.float16, 3e-3, id="float16"),
    pytest.param(torch.bfloat16, 2e-2, id="bfloat16"),
]
# (query tokens, context length) of each sequence; decodes first.
BATCHES = {
    "one_token": [(1, 1)],
    "one_decode": [(1, 37)],
    "decodes": [(1, 5), (1, 1), (1, 33), (1, 16)],
    "one_prefill": [(9, 9)],
    "prefills": [(17, 17), (1, 1), (3, 3)],
    "chunks": [(4, 20), (7, 7), (2, 19)],
    "mixed": [(1, 12), (1, 40), (5, 5), (6, 31), (1, 3)],
}
NUM_DECODES = {"one_decode": 1, "decodes": 4, "mixed": 2}


@dataclass
class Memory:
    """Caches of random numbers, and tables that scatter each sequence over them."""

    keys: Tensor
    values: Tensor
    tables: Tensor
    query: Tensor
    query_start: Tensor
    context_lens: Tensor


def make_memory(
    batch: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.float32,
) -> Memory:
    generator = torch.Generator().manual_seed(heads * 1000 + block_size)
    needed = [-(-context // block_size) for _, context in batch]
    num_blocks = sum(needed) + 3
    order = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.zeros(len(batch), max(needed) + 1, dtype=torch.int64)
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
    shape = (num_blocks, block_size, kv_heads, dim)
    lengths = torch.tensor([length for length, _ in batch])
    return Memory(
        keys=torch.randn(shape, generator=generator).to(dtype),
        values=torch.randn(shape, generator=generator).to(dtype),
        tables=tables,
        query=torch.randn(int(lengths.sum()), heads, dim, generator=generator).to(dtype),
        query_start=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        context_lens=torch.tensor([context for _, context in batch]),
    )


def attend(memory: Memory, num_decodes: int, scale: float, **more: Any) -> Tensor:
    return kernels.paged_attention(
        memory.query, memory.keys, memory.values, memory.tables, memory.query_start,
        memory.context_lens, num_decodes, scale, **more,
    )  # fmt: skip


def naive_attention(
    memory: Memory, scale: float, window: int | None = None, softcap: float | None = None
) -> Tensor:
    block_size, kv_heads = memory.keys.shape[1:3]
    heads = memory.query.shape[1]
    out = torch.zeros(memory.query.shape, dtype=torch.float64)
    for row, context in enumerate(memory.context_lens.tolist()):
        begin, end = memory.query_start[row : row + 2].tolist()
        slots = [
            (memory.tables[row, position // block_size], position % block_size)
            for position in range(context)
        ]
        keys = torch.stack([memory.keys[slot].double() for slot in slots])
        values = torch.stack([memory.values[slot].double() for slot in slots])
        for token in range(begin, end):
            position = context - (end - token)
            seen = [p for p in range(position + 1) if window is None or p > position - window]
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = keys[seen, group] @ memory.query[token, head].double() * scale
                if softcap is not None:
                    scores = (scores / softcap).tanh() * softcap
                weights = (scores - scores.max()).exp()
                out[token, head] = weights @ values[seen, group] / weights.sum()
    return out


@pytest.mark.parametrize(("dtype", "atol"), PRECISIONS)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("name", BATCHES)
def test_paged_attention(name: str, block_size: int, dtype: torch.dtype, atol: float) -> None:
    memory = make_memory(BATCHES[name], 4, 2, 8, block_size, dtype)
    got = attend(memory, NUM_DECODES.get(name, 0), 8**-0.5)
    assert got.dtype == dtype and got.shape == memory.query.shape
    torch.testing.assert_close(got.double(), naive_attention(memory, 8**-0.5), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 2), (3, 3, 10), (6, 1, 16), (6, 2, 24), (8, 4, 5)]
)
def test_paged_attention_with_grouped_heads(heads: int, kv_heads: int, dim: int) -> None:
    memory = make_memory(BATCHES["mixed"], heads, kv_heads, dim, 4)
    got = attend(memory, 2, 0.3)
    torch.testing.assert_close(got.double(), naive_attention(memory, 0.3), rtol=0, atol=2e-6)


def test_paged_attention_takes_a_slice_of_heads() -> None:
    memory = make_memory(BATCHES["mixed"], 4, 2, 8, 4)
    expected = attend(memory, 2, 0.3)
    fused = torch.cat([memory.query, torch.full_like(memory.query, math.nan)], dim=1)
    memory.query = fused[:, :4]
    assert not memory.query.is_contiguous()
    assert torch.equal(attend(memory, 2, 0.3), expected)


def test_paged_attention_takes_one_layer_of_a_cache() -> None:
    memory = make_memory(BATCHES["mixed"], 4, 2, 8, 4)
    expected = attend(memory, 2, 0.3)
    memory.keys = torch.stack([torch.zeros_like(memory.keys), memory.keys], dim=1)[:, 1]
    assert not memory.keys.is_contiguous()
    assert torch.equal(attend(memory, 2, 0.3), expected)


@pytest.mark.parametrize("name", BATCHES)
def test_paged_attention_never_reads_behind_a_context(name: str) -> None:
    memory = make_memory(BATCHES[name], 4, 2, 8, 4)
    expected = attend(memory, NUM_DECODES.get(name, 0), 0.3)
    used = torch.zeros(memory.keys.shape[:2], dtype=torch.bool)
    for row, context in enumerate(memory.context_lens.tolist()):
        for position in range(context):
            used[memory.tables[row, position // 4], position % 4] = True
    assert not used.all()
    memory.keys[~used], memory.values[~used] = math.nan, math.inf
    assert torch.equal(attend(memory, NUM_DECODES.get(name, 0), 0.3), expected)


@pytest.mark.parametrize("poisoned", [0, 1, 2, 3])
def test_paged_attention_keeps_a_sequence_from_the_others(poisoned: int) -> None:
    batch = [(1, 7), (1, 30), (3, 9), (2, 26)]
    memory = make_memory(batch, 4, 2, 8, 4)
    expected = attend(memory, 2, 0.3)
    blocks = memory.tables[poisoned, : -(-batch[poisoned][1] // 4)]
    memory.keys[blocks], memory.values[blocks] = math.nan, math.nan
    memory.tables[:, -1] = blocks[0]  # what pads the tables may be anybody's block
    for row, (_, context) in enumerate(batch):
        memory.tables[row, -(-context // 4) :] = blocks[0]
    got = attend(memory, 2, 0.3)
    for row in range(len(batch)):
        rows = slice(int(memory.query_start[row]), int(memory.query_start[row + 1]))
        assert torch.equal(got[rows], expected[rows]) != (row == poisoned)


def test_paged_attention_is_causal_within_a_chunk() -> None:
    memory = make_memory([(4, 10)], 2, 1, 8, 4)
    before = attend(memory, 0, 0.3)
    last = (memory.tables[0, 9 // 4], 9 % 4)
    memory.keys[last], memory.values[last] = 5.0, -5.0
    after = attend(memory, 0, 0.3)
    assert torch.equal(after[:3], before[:3]) and not torch.equal(after[3], before[3])


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 16, 30, 31, 32, 100])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("name", BATCHES)
def test_windowed_attention(name: str, block_size: int, window: int, softcap: float | None) -> None:
    memory = make_memory(BATCHES[name], 4, 2, 8, block_size)
    got = attend(memory, NUM_DECODES.get(name, 0), 0.3, window=window, softcap=softcap)
    expected = naive_attention(memory, 0.3, window, softcap)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_decodes", [0, 1])
def test_a_window_ends_where_it_should(num_decodes: int) -> None:
    """The token at position 20 attends to `window` tokens, itself included."""
    memory = make_memory([(1, 21)], 2, 1, 8, 4)
    for window in (1, 4, 7, 20, 21):
        before = attend(memory, num_decodes, 0.3, window=window)
        for position in range(21):
            slot = (memory.tables[0, position // 4], position % 4)
            kept = memory.values[slot].clone()
            memory.values[slot] += 1.0
            after = attend(memory, num_decodes, 0.3, window=window)
            assert torch.equal(after, before) == (position <= 20 - window)
            memory.values[slot] = kept


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_a_window_as_long_as_the_context_is_none(softcap: float | None) -> None:
    memory = make_memory(BATCHES["mixed"], 4, 2, 8, 4)
    expected = attend(memory, 2, 0.3, softcap=softcap)
    assert torch.equal(attend(memory, 2, 0.3, window=40, softcap=softcap), expected)
    assert not torch.equal(attend(memory, 2, 0.3, window=39, softcap=softcap), expected)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [1, 4, 6])
@pytest.mark.parametrize("name", BATCHES)
def test_blocks_before_every_window_are_not_read(
    name: str, window: int, softcap: float | None
) -> None:
    memory = make_memory(BATCHES[name], 4, 2, 8, 4)
    num_decodes = NUM_DECODES.get(name, 0)
    expected = attend(memory, num_decodes, 0.3, window=window, softcap=softcap)
    for row, (length, context) in enumerate(BATCHES[name]):
        dead = max(context - length - window + 1, 0) // 4
        blocks = memory.tables[row, :dead].clone()
        memory.keys[blocks], memory.values[blocks] = math.nan, math.nan
        memory.tables[row, :dead] = 0  # given back, and anybody's by now
    got = attend(memory, num_decodes, 0.3, window=window, softcap=softcap)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("dtype", "atol"), PRECISIONS)
@pytest.mark.parametrize("name", BATCHES)
def test_capped_attention(name: str, dtype: torch.dtype, atol: float) -> None:
    memory = make_memory(BATCHES[name], 6, 2, 8, 4, dtype)
    got = attend(memory, NUM_DECODES.get(name, 0), 0.8, softcap=1.5)
    assert got.dtype == dtype and got.shape == memory.query.shape
    expected = naive_attention(memory, 0.8, softcap=1.5)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


def test_capped_attention_never_reads_behind_a_context() -> None:
    memory = make_memory(BATCHES["mixed"], 4, 2, 8, 4)
    expected = attend(memory, 2, 0.3, softcap=0.7)
    for row, context in enumerate(memory.context_lens.tolist()):
        last = memory.tables[row, (context - 1) // 4]
        memory.keys[last, (context - 1) % 4 + 1 :] = math.nan
        memory.values[last, (context - 1) % 4 + 1 :] = math.inf
    assert torch.equal(attend(memory, 2, 0.3, softcap=0.7), expected)


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_store_kv(block_size: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (40 // block_size, block_size, kv_heads, 6)
    caches = [torch.randn(shape, generator=generator) for _ in range(2)]
    slots = [7, -1, 31, 0, -1, 12]
    # A slice of a fused projection is not contiguous.
    fused = torch.randn(len(slots), 3 * kv_heads, 6, generator=generator)
    given = [fused[:, kv_heads : 2 * kv_heads], fused[:, 2 * kv_heads :]]
    expected = [cache.clone() for cache in caches]
    for token, slot in enumerate(slots):
        if slot >= 0:
            for wanted, rows in zip(expected, given, strict=True):
                wanted[slot // block_size, slot % block_size] = rows[token]
    kernels.store_kv(given[0], given[1], caches[0], caches[1], torch.tensor(slots))
    assert all(torch.equal(got, wanted) for got, wanted in zip(caches, expected, strict=True))


def test_store_kv_writes_nothing_when_all_slots_are_skipped() -> None:
    caches = [torch.zeros(2, 4, 1, 2) for _ in range(2)]
    rows = torch.ones(3, 1, 2)
    kernels.store_kv(rows, rows, caches[0], caches[1], torch.full((3,), -1))
    assert not any(cache.any() for cache in caches)


def test_store_kv_writes_into_strided_caches() -> None:
    """One layer of a block's row, and a cache whose heads come before its tokens."""
    layer = [torch.zeros(3, 2, 4, 1, 2)[:, 1] for _ in range(2)]
    transposed = [torch.zeros(3, 1, 4, 2).transpose(1, 2) for _ in range(2)]
    rows = torch.ones(1, 1, 2)
    for caches in (layer, transposed):
        kernels.store_kv(rows, 2 * rows, caches[0], caches[1], torch.tensor([5]))
        assert [cache.sum() for cache in caches] == [2, 4]
        assert (caches[0][1, 1] == 1).all() and (caches[1][1, 1] == 2).all()


@pytest.mark.parametrize("block_size", [1, 4, 64])
def test_tables_may_name_any_block_behind_a_context(block_size: int) -> None:
    memory = make_memory(BATCHES["mixed"], 4, 2, 8, block_size)
    expected = attend(memory, 2, 0.3)
    for row, context in enumerate(memory.context_lens.tolist()):
        memory.tables[row, -(-context // block_size) :] = len(memory.keys) - 1
    assert torch.equal(attend(memory, 2, 0.3), expected)
