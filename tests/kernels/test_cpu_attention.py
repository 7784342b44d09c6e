"""The CPU kernels' attention and KV writes against their statements in plain torch."""

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference_kv
from octavo.kernels.cpu import Library
from octavo.kernels.cpu.types import Batch, KVLayer, KVType

TYPES = {
    torch.float32: KVType.F32,
    torch.bfloat16: KVType.BF16,
    torch.float16: KVType.F16,
    torch.int8: KVType.INT8,
}

# Of outputs of about 1: what the sums' order costs in float32; what the rounding of queries,
# probabilities and the result costs in bfloat16.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@dataclass
class Memory:
    """A layer's blocks as the engine lays them out: in each its keys, its values, the scales."""

    storage: Tensor
    layer: KVLayer
    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None

    @staticmethod
    def make(blocks: int, block_size: int, kv_heads: int, dim: int, dtype: torch.dtype) -> "Memory":
        numbers = block_size * kv_heads * dim * dtype.itemsize
        scale_bytes = block_size * kv_heads * 2 if dtype is torch.int8 else 0
        # Each part begins at an even place; between two blocks is a gap, as of other layers.
        starts = [0, numbers + numbers % 2]
        starts += [starts[1] + numbers + numbers % 2]
        starts += [starts[2] + scale_bytes]
        block_bytes = -(-(starts[3] + scale_bytes) // 8) * 8 + 24
        storage = torch.full((blocks, block_bytes), 0xFF, dtype=torch.uint8)

        def part(start: int, dtype: torch.dtype, *shape: int) -> Tensor:
            count = block_size * kv_heads * (shape[-1] if len(shape) == 3 else 1)
            flat = storage.view(dtype)[:, start // dtype.itemsize :][:, :count]
            return flat.unflatten(1, shape)

        layer = KVLayer(
            storage.data_ptr(), block_bytes, *starts, TYPES[dtype], block_size, kv_heads, dim
        )
        scaled = dtype is torch.int8
        return Memory(
            storage, layer,
            part(starts[0], dtype, block_size, kv_heads, dim),
            part(starts[1], dtype, block_size, kv_heads, dim),
            part(starts[2], torch.float16, block_size, kv_heads) if scaled else None,
            part(starts[3], torch.float16, block_size, kv_heads) if scaled else None,
        )  # fmt: skip


@dataclass
class Case:
    batch: list[tuple[int, int]]  # (query tokens, context length) of each sequence
    heads: int
    kv_heads: int
    dim: int
    block_size: int
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None
    seed: int = 0


@dataclass
class Inputs:
    memory: Memory
    query: Tensor
    tables: Tensor
    query_start: Tensor
    context_lens: Tensor

    def alone(self, row: int) -> "Inputs":
        begin, end = self.query_start[row : row + 2].tolist()
        return replace(
            self, query=self.query[begin:end].clone(), tables=self.tables[row : row + 1].clone(),
            query_start=torch.tensor([0, end - begin]),
            context_lens=self.context_lens[row : row + 1].clone(),
        )  # fmt: skip


def make_inputs(case: Case) -> Inputs:
    """Random keys and values in blocks that a query can see, NaN behind a context, and no block
    that exists in the tables' entries behind a context or before every window."""
    generator = torch.Generator().manual_seed(case.seed)
    size = case.block_size
    needed = [-(-context // size) for _, context in case.batch]
    blocks = sum(needed) + 2
    order = torch.randperm(blocks, generator=generator).tolist()
    memory = Memory.make(blocks, size, case.kv_heads, case.dim, case.dtype)
    tables = torch.full((len(case.batch), max(needed) + 2), -(2**40))
    slots: list[int] = []
    for row, (length, context) in enumerate(case.batch):
        tables[row, : needed[row]] = torch.tensor([order.pop() for _ in range(needed[row])])
        reach = 0 if case.window is None else max(0, context - length - case.window + 1)
        seen = range(reach // size * size, context)
        slots += [int(tables[row, p // size]) * size + p % size for p in seen]
        tables[row, : reach // size] = -(2**40)
    shape = (len(slots), case.kv_heads, case.dim)
    reference_kv.store_kv(
        torch.randn(shape, generator=generator), torch.randn(shape, generator=generator),
        memory.keys, memory.values, torch.tensor(slots), memory.key_scales, memory.value_scales,
    )  # fmt: skip
    lengths = torch.tensor([length for length, _ in case.batch])
    return Inputs(
        memory,
        torch.randn(int(lengths.sum()), case.heads, case.dim, generator=generator),
        tables,
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        torch.tensor([context for _, context in case.batch]),
    )


def attend(library: Library, case: Case, inputs: Inputs) -> Tensor:
    batch = Batch(
        block_tables=inputs.tables.data_ptr(), query_start=inputs.query_start.data_ptr(),
        context_lens=inputs.context_lens.data_ptr(), table_stride=inputs.tables.stride(0),
        num_tokens=len(inputs.query), num_seqs=len(inputs.tables),
    )  # fmt: skip
    return library.paged_attention(
        inputs.query, inputs.memory.layer, batch, case.dim**-0.5, window=case.window,
        softcap=case.softcap,
    )  # fmt: skip


def expected(case: Case, inputs: Inputs) -> Tensor:
    memory = inputs.memory
    out = []
    for row in range(len(case.batch)):
        one = inputs.alone(row)
        out.append(
            reference_kv.paged_attention(
                one.query, memory.keys, memory.values, one.tables.clamp(min=0), one.query_start,
                one.context_lens, 0, case.dim**-0.5, key_scales=memory.key_scales,
                value_scales=memory.value_scales, window=case.window, softcap=case.softcap,
            )
        )  # fmt: skip
    return torch.cat(out)


def check(library: Library, case: Case) -> None:
    inputs = make_inputs(case)
    wanted = expected(case, inputs)
    for dtype, atol in TOLERANCES.items():
        given = replace(inputs, query=inputs.query.to(dtype))
        got = attend(library, case, given)
        torch.testing.assert_close(got.float(), wanted, rtol=0, atol=atol)
        for row in range(len(case.batch)):
            begin, end = given.query_start[row : row + 2].tolist()
            assert torch.equal(attend(library, case, given.alone(row)), got[begin:end]), row


BATCHES = {
    "one_token": [(1, 1)],
    "one_chunk": [(1, 256), (1, 255)],
    "chunk_and_one": [(1, 257), (1, 512), (1, 513)],
    "one_prefill": [(9, 9)],
    "a_tile_and_one": [(65, 65), (129, 129)],
    "in_a_context": [(4, 20), (100, 300), (2, 129), (31, 128)],
    "mixed": [(1, 12), (1, 400), (5, 5), (70, 331), (1, 3), (1, 300)],
}
DTYPES = pytest.mark.parametrize("dtype", list(TYPES), ids=lambda d: str(d).removeprefix("torch."))


@DTYPES
@pytest.mark.parametrize("name", BATCHES)
def test_batches(library: Library, name: str, dtype: torch.dtype) -> None:
    check(library, Case(BATCHES[name], 8, 2, 64, 16, dtype))


@DTYPES
@pytest.mark.parametrize("dim", [1, 2, 5, 16, 24, 33, 80, 96, 128, 200, 256])
def test_head_sizes(library: Library, dim: int, dtype: torch.dtype) -> None:
    check(library, Case([(1, 40), (1, 7), (9, 33)], 6, 2, dim, 16, dtype))


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (7, 1), (40, 2), (5, 1), (300, 1)])
def test_groups_of_heads(library: Library, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    check(library, Case([(1, 37), (3, 20), (1, 300)], heads, kv_heads, 32, 16, dtype))


@DTYPES
@pytest.mark.parametrize(("heads", "window"), [(1, None), (3, None), (4, 50)])
@pytest.mark.parametrize("dim", [22, 64, 80, 128])
def test_numbers_of_rows(
    library: Library, dim: int, heads: int, window: int | None, dtype: torch.dtype
) -> None:
    """Few rows, and blocks of them that are just full or just not; from the context's start and
    behind it."""
    tokens = [*range(2, 41, 3), 63, 64, 65, 86]
    batch = [(count, count + context) for count in tokens for context in (0, 121)]
    check(library, Case(batch, heads, 1, dim, 16, dtype, window=window))


@DTYPES
@pytest.mark.parametrize("dim", [33, 96])
def test_a_row_does_not_depend_on_others(library: Library, dim: int, dtype: torch.dtype) -> None:
    """Token by token the same bits, however a prompt is cut."""
    case = Case([(150, 290)], 4, 2, dim, 16, dtype)
    for query_type in TOLERANCES:
        inputs = make_inputs(case)
        query = inputs.query.to(query_type)
        whole = attend(library, case, replace(inputs, query=query))
        begin = 0
        for count in (2, 3, 16, 17, 44, 66, 2):
            part = replace(
                inputs, query=query[begin : begin + count].clone(),
                query_start=torch.tensor([0, count]),
                context_lens=torch.tensor([140 + begin + count]),
            )  # fmt: skip
            assert torch.equal(attend(library, case, part), whole[begin : begin + count]), begin
            begin += count
        assert begin == 150


@DTYPES
@pytest.mark.parametrize("block_size", [1, 3, 7, 64, 1000])
def test_block_sizes(library: Library, block_size: int, dtype: torch.dtype) -> None:
    check(library, Case([(1, 290), (20, 150)], 4, 2, 24, block_size, dtype))


@DTYPES
@pytest.mark.parametrize("window", [1, 2, 17, 128, 256, 300, 10_000])
def test_windows(library: Library, window: int, dtype: torch.dtype) -> None:
    batch = [(1, 1), (1, 290), (1, 600), (33, 33), (60, 460), (140, 300)]
    check(library, Case(batch, 4, 2, 16, 8, dtype, window=window))


@DTYPES
@pytest.mark.parametrize("window", [None, 50])
def test_softcap(library: Library, window: int | None, dtype: torch.dtype) -> None:
    batch = [(1, 300), (1, 9), (40, 140)]
    check(library, Case(batch, 4, 2, 64, 16, dtype, window=window, softcap=0.7))


@pytest.mark.parametrize("seed", range(40))
def test_any_shapes(library: Library, seed: int) -> None:
    pick = random.Random(seed)
    kv_heads = pick.choice([1, 2, 3])
    batch = [(1, pick.randint(1, 700)) for _ in range(pick.randint(0, 5))]
    for _ in range(pick.randint(0 if batch else 1, 3)):
        length = pick.randint(2, 150)
        batch.append((length, length + pick.choice([0, pick.randint(1, 300)])))
    pick.shuffle(batch)
    check(
        library,
        Case(
            batch, kv_heads * pick.choice([1, 2, 3, 4, 6, 8]), kv_heads,
            pick.choice([16, 24, 64, 80, 96, 128]), pick.choice([1, 5, 16, 24, 33]),
            pick.choice(list(TYPES)), pick.choice([None, None, pick.randint(1, 400)]),
            pick.choice([None, None, 20.0]), seed,
        ),
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("spread", [1e-9, 1e-7, 3e-6, 1.0, 1e5, 1e9, 1e38])
@pytest.mark.parametrize(("kv_heads", "dim", "block_size"), [(2, 64, 16), (3, 5, 7), (1, 33, 1)])
def test_store_kv(
    library: Library, kv_heads: int, dim: int, block_size: int, spread: float, dtype: torch.dtype
) -> None:
    """Bit for bit what the reference stores, and nothing else is written."""
    generator = torch.Generator().manual_seed(dim)
    slots = torch.randperm(9 * block_size, generator=generator)[:40]
    slots[::5] = -1
    keys, values = torch.randn(2, len(slots), kv_heads, dim, generator=generator) * spread
    keys[0, 0, 0] = torch.finfo(torch.float32).max
    keys[1, 0] = 0
    values[3, 0, -1] = torch.inf
    values[4 % len(values), -1, 0] = -torch.inf
    got, want = (Memory.make(9, block_size, kv_heads, dim, dtype) for _ in range(2))
    library.store_kv(keys, values, got.layer, slots)
    reference_kv.store_kv(
        keys, values, want.keys, want.values, slots, want.key_scales, want.value_scales
    )
    if dtype is torch.int8:
        # What an infinity's quotients are stored as is no matter: their scale is infinite.
        for memory in (got, want):
            assert memory.value_scales is not None
            memory.values[memory.value_scales.isinf()] = 0
    assert torch.equal(got.storage, want.storage)


@DTYPES
def test_not_a_number_stays_so(library: Library, dtype: torch.dtype) -> None:
    memory = Memory.make(2, 4, 1, 24, dtype)
    memory.storage.zero_()
    keys = torch.ones(2, 1, 24)
    keys[1, 0, 20] = torch.nan
    library.store_kv(keys, keys, memory.layer, torch.tensor([5, 2]))
    for cache, scales in ((memory.keys, memory.key_scales), (memory.values, memory.value_scales)):
        read = cache.float() if scales is None else cache.float() * scales.float()[..., None]
        assert read[0, 2, 0].isnan().any() and not read[1].isnan().any()
        torch.testing.assert_close(read[1, 1, 0], torch.ones(24), rtol=0, atol=1e-3)


@pytest.mark.parametrize("length", [1, 3])
@DTYPES
def test_a_key_that_is_not_a_number_is_seen(
    library: Library, length: int, dtype: torch.dtype
) -> None:
    case = Case([(length, 300), (length, 40)], 2, 1, 32, 16, dtype)
    inputs = make_inputs(case)
    row = (inputs.tables[0, 10], 3, 0)
    if inputs.memory.key_scales is not None:
        inputs.memory.key_scales[row] = torch.nan
    else:
        inputs.memory.keys[row] = torch.nan
    got = attend(library, case, inputs)
    assert got[:length].isnan().all() and not got[length:].isnan().any()
