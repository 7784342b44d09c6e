"""Paged attention on the GPU against its statement in plain torch."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference_kv
from octavo.kernels.gpu import attention, attention_decode
from octavo.kernels.gpu.attention import choose_splits, paged_attention
from octavo.kernels.gpu.attention_decode import (
    SPLIT_TOKENS,
    decode_tile,
    max_splits,
    num_slots,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3}
if DEVICE == "cuda":  # the interpreter's tl.dot is wrong in bfloat16
    TOLERANCES[torch.bfloat16] = 2e-2
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
# (query heads, KV heads, head size, block size)
SHAPES = [(2, 2, 64, 16), (8, 2, 80, 32), (8, 1, 128, 16), (6, 2, 24, 256), (5, 1, 8, 16)]
NOWHERE = -(2**40)  # of a table: memory that nobody has


@dataclass
class Inputs:
    """As the engine lays out memory: a layer's keys and values are one part of a block's row, the
    queries one part of a fused projection's."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    num_decodes: int
    scale: float
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def rows(self) -> list[slice]:
        starts = self.query_start.tolist()
        return [slice(*pair) for pair in pairwise(starts)]

    def alone(self, row: int) -> "Inputs":
        rows = self.rows[row]
        return replace(
            self, query=self.query[rows], block_tables=self.block_tables[row : row + 1],
            query_start=torch.tensor([0, rows.stop - rows.start], device=DEVICE),
            context_lens=self.context_lens[row : row + 1],
            num_decodes=int(row < self.num_decodes),
        )  # fmt: skip

    def attend(self, **more: Any) -> Tensor:
        lengths = [rows.stop - rows.start for rows in self.rows[self.num_decodes :]]
        return paged_attention(**vars(self), **{"max_query_len": max([0, *lengths])} | more)

    def expected(self, **more: Any) -> Tensor:
        """In float32. Of an empty context, which the reference does not know, zeros."""
        wide: dict[str, Any] = vars(self) | {
            "query": self.query.float(), "context_lens": self.context_lens.clamp(min=1),
            "block_tables": self.block_tables.clamp(min=0).long(),
        }  # fmt: skip
        out = reference_kv.paged_attention(**wide, **more)
        for row in (self.context_lens == 0).nonzero().flatten().tolist():
            out[self.rows[row]] = 0
        return out


def make(
    batch: list[tuple[int, int]],
    num_decodes: int,
    shape: tuple[int, int, int, int] = (4, 2, 16, 16),
    dtype: torch.dtype = torch.float32,
    kv: torch.dtype | None = None,
    window: int | None = None,
) -> Inputs:
    """Random numbers where a query can see them, in blocks out of order; elsewhere NaN, and
    tables that lead nowhere. `batch`: (query tokens, context length) of each sequence."""
    heads, groups, dim, size = shape
    generator = torch.Generator().manual_seed(0)
    kv = kv or dtype
    needed = [-(-context // size) for _, context in batch]
    num_blocks = sum(needed) + 3
    order = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(batch), max(needed) + 2), NOWHERE)
    seen = torch.zeros(num_blocks, size, dtype=torch.bool)
    for row, (length, context) in enumerate(batch):
        first = 0 if window is None else max(0, context - length - window + 1)
        for column in range(needed[row]):
            block = order.pop()
            begin, end = max(first - column * size, 0), min(context - column * size, size)
            if begin < end:
                tables[row, column] = block
                # The reference reads all of a block that some window reaches.
                seen[block, :end] = True
    assert not seen.all()
    caches: list[Tensor] = []
    scales: list[Tensor | None] = []
    for _ in range(2):
        numbers = torch.randn(num_blocks, size, groups, dim, generator=generator)
        own: Tensor | None = None
        if kv in QUANTIZED:
            stored, own = reference_kv.quantize_kv(numbers.flatten(0, 1), kv)
            stored, own = stored.view(numbers.shape), own.view(numbers.shape[:3])
            own[~seen] = math.nan
            own = torch.stack([own, own], dim=1).to(DEVICE)[:, 1]
        else:
            stored = numbers.to(kv)
            stored[~seen] = math.nan
        caches.append(torch.stack([stored, stored], dim=1).to(DEVICE)[:, 1])
        scales.append(own)
    lengths = torch.tensor([length for length, _ in batch])
    fused = torch.randn(int(lengths.sum()), heads + 2, dim, generator=generator)
    return Inputs(
        fused.to(DEVICE, dtype)[:, :heads], *caches, tables.to(DEVICE),
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE),
        torch.tensor([context for _, context in batch], device=DEVICE),
        num_decodes, dim**-0.5, *scales,
    )  # fmt: skip


def check(inputs: Inputs, **more: Any) -> Tensor:
    got = inputs.attend(**more)
    assert got.dtype == inputs.query.dtype and got.is_contiguous()
    more.pop("num_splits", None)
    atol = TOLERANCES[got.dtype]
    torch.testing.assert_close(got.float(), inputs.expected(**more), rtol=0, atol=atol)
    return got


DECODES = [(1, context) for context in (1, 15, 0, 16, 17, 1000, 255, 256, 257)]
MIXED = [(1, 300), (1, 40), (5, 5), (40, 75), (1, 1), (3, 90)]


@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES)
def test_decode(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    got = check(make(DECODES, len(DECODES), shape, dtype))
    assert not got[2].any(), "the row of the empty context"


@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_beside_decodes(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(make(MIXED, 2, shape, dtype))


@PRECISIONS
def test_prefill_alone(dtype: torch.dtype) -> None:
    check(make([(130, 130)], 0, (4, 2, 64, 16), dtype))
    check(make([(1, 77), (3, 200), (16, 16)], 0, (4, 2, 64, 16), dtype))


@PRECISIONS
@pytest.mark.parametrize("kv", [*QUANTIZED, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_caches_of_another_type(kv: torch.dtype, dtype: torch.dtype) -> None:
    check(make(MIXED, 2, (8, 2, 72, 32), dtype, kv))


@pytest.mark.parametrize("kv", QUANTIZED, ids=str)
@pytest.mark.parametrize("size", [1e-4, 300.0])
def test_small_and_large_quantized_values(size: float, kv: torch.dtype) -> None:
    """A float16 weight times such a scale would lose its bits."""
    inputs = make(MIXED, 2, (4, 2, 64, 16), torch.float16, kv)
    assert inputs.value_scales is not None
    inputs.value_scales *= size
    expected = inputs.expected()
    torch.testing.assert_close(inputs.attend().float(), expected, rtol=2e-3, atol=2e-3 * size)


@pytest.mark.parametrize(
    ("dtype", "softcap"), [(torch.float32, None), (torch.float32, 0.7), (torch.float16, 0.7)]
)
@pytest.mark.parametrize("window", [None, 1, 16, 37, 290, 5000])
def test_windows_and_softcap(window: int | None, softcap: float | None, dtype: torch.dtype) -> None:
    """What lies in blocks before every window is NaN, and tables do not say where it is."""
    inputs = make([*MIXED[:2], (1, 700), *MIXED[2:]], 3, (4, 1, 16, 16), dtype, window=window)
    check(inputs, window=window, softcap=softcap)


@pytest.mark.parametrize("num_decodes", [0, 1])
def test_a_window_ends_where_it_should(num_decodes: int) -> None:
    """The token at position 150 attends to `window` tokens, itself included: its own block's
    others may be NaN."""
    for window in (1, 2, 22, 23, 128, 129, 151):
        inputs = make([(1, 151)], num_decodes)
        expected = inputs.expected(window=window)
        at = torch.arange(151 - window, device=DEVICE)
        blocks = inputs.block_tables[0, at // 16]
        inputs.key_cache[blocks, at % 16] = inputs.value_cache[blocks, at % 16] = math.nan
        torch.testing.assert_close(inputs.attend(window=window), expected, rtol=0, atol=1e-5)
        assert inputs.attend(window=min(window + 1, 151)).isnan().any() == (window < 151)


@pytest.mark.parametrize(
    ("dtype", "kv"), [(torch.float32, torch.float32), (torch.float16, torch.int8)], ids=str
)
@pytest.mark.parametrize("window", [None, 37, 300])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    window: int | None, kv: torch.dtype, dtype: torch.dtype
) -> None:
    batch = [(1, 1000), (1, 300), (1, 0), (40, 131), (1, 1), (5, 400)]
    inputs = make(batch, 3, (8, 1, 32, 16), dtype, kv)
    together = inputs.attend(window=window)
    for row in range(len(batch)):
        alone = inputs.alone(row)
        columns = -(-batch[row][1] // 16)
        alone.block_tables = alone.block_tables[:, : columns + 1].clone()
        assert torch.equal(alone.attend(window=window), together[inputs.rows[row]])


@PRECISIONS
def test_how_many_programs_share_a_context_changes_no_bit(dtype: torch.dtype) -> None:
    inputs = make([(1, 1000), (1, 511), (1, 3)], 3, (4, 1, 64, 16), dtype)
    expected = check(inputs, num_splits=1)
    for num_splits in (2, 3, 4, 100):
        assert torch.equal(inputs.attend(num_splits=num_splits), expected)


def test_the_longest_contexts_have_longer_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, attention_decode):
        monkeypatch.setattr(module, "max_splits", lambda groups: 4)
    inputs = make([(1, 4 * SPLIT_TOKENS + 400), (1, 400)], 2)
    assert torch.equal(check(inputs, num_splits=3), inputs.attend(num_splits=16))


def test_tables_of_32_bits() -> None:
    inputs = make(MIXED, 2, (2, 1, 16, 16))
    expected = inputs.attend()
    inputs.block_tables = inputs.block_tables.clamp(min=-1).int()
    inputs.query_start, inputs.context_lens = inputs.query_start.int(), inputs.context_lens.int()
    assert torch.equal(inputs.attend(), expected)


def test_one_launch_fits_every_context() -> None:
    """A graph's tables are as wide as the longest context, its grids those of the longest chunk."""
    inputs = make(MIXED, 2, (2, 1, 16, 16))
    expected = inputs.attend()
    wide = torch.full((len(MIXED), 300), NOWHERE, device=DEVICE)
    wide[:, : inputs.block_tables.shape[1]] = inputs.block_tables
    inputs.block_tables = wide
    assert torch.equal(inputs.attend(max_query_len=200), expected)


def test_a_context_longer_than_its_table_ends_with_it() -> None:
    inputs = make([(1, 64), (9, 64)], 1)
    inputs.block_tables = inputs.block_tables[:, :4].contiguous()
    expected = inputs.attend()
    inputs.context_lens[:] = 70
    assert torch.equal(inputs.attend(), expected)


def test_chunks_of_a_prompt_are_the_whole() -> None:
    inputs = make([(100, 100)], 0, (4, 2, 64, 16))
    whole = inputs.attend()
    begin = 0
    for end in (1, 17, 90, 100):
        part = replace(
            inputs, query=inputs.query[begin:end], context_lens=inputs.context_lens * 0 + end,
            query_start=torch.tensor([0, end - begin], device=DEVICE),
        )  # fmt: skip
        torch.testing.assert_close(part.attend(), whole[begin:end], rtol=0, atol=1e-6)
        begin = end


# numpy, which computes for the interpreter, warns of what is not finite.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kv", [torch.float32, torch.int8], ids=str)
def test_a_sequence_is_kept_from_the_faults_of_others(kv: torch.dtype) -> None:
    for row in range(4):
        inputs = make([(1, 300), (1, 20), (5, 5), (20, 61)], 2, (2, 1, 16, 16), kv=kv)
        expected = inputs.attend()
        blocks = inputs.block_tables[row]
        blocks = blocks[blocks >= 0]
        faulty = inputs.value_cache if inputs.value_scales is None else inputs.value_scales
        faulty[blocks] = math.inf if kv is torch.int8 else math.nan
        got = inputs.attend()
        for other, rows in enumerate(inputs.rows):
            if other == row:
                assert not got[rows].isfinite().any()
            else:
                assert torch.equal(got[rows], expected[rows])


def test_a_row_of_no_tokens_is_nothing() -> None:
    assert make([(0, 0), (0, 0)], 0).attend().shape == (0, 4, 16)
    assert torch.equal(make([(20, 20), (0, 0)], 0).attend(), make([(20, 20)], 0).attend())
    assert not make([(1, 0)] * 3, 3).attend().any()


def test_the_scratch_has_room_for_every_split() -> None:
    for groups, dim, window in product((1, 8, 64), (64, 128, 256), (None, 1, 100, 225, 257, 1000)):
        tile = decode_tile(dim, 2)
        for context in (0, 1, 100, 255, 256, 257, 1000, 4095, 100_000, 131_072):
            begin = 0 if window is None else max(context - window, 0)
            tiles = -(-context // tile) - begin // tile
            split_tiles = max(SPLIT_TOKENS // tile, -(-tiles // max_splits(groups)))
            longest = context if window is None else min(context, window + tile)
            assert -(-tiles // split_tiles) <= num_slots(groups, longest)


def test_choose_splits() -> None:
    assert choose_splits(256, 8, 132, 131_072) == 1
    assert choose_splits(1, 8, 132, 131_072) == max_splits(8) == 32
    assert choose_splits(1, 8, 132, 1000) == 4
    assert choose_splits(16, 8, 132, 131_072) == 9
    assert choose_splits(1, 8, 132, 1) == 1


def test_what_cannot_be_is_refused() -> None:
    inputs = make(MIXED, 2)
    for fault in (
        {"key_cache": inputs.key_cache[:, :8]},
        {"query": inputs.query[:, :3]},
        {"query": inputs.query.transpose(1, 2).contiguous().transpose(1, 2)},
        {"value_cache": inputs.value_cache.half()},
        {"key_scales": inputs.key_cache[..., 0].half()},
        {"context_lens": inputs.context_lens[1:]},
        {"num_decodes": 7},
    ):
        with pytest.raises(AssertionError):
            replace(inputs, **fault).attend()  # type: ignore[arg-type]


_COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit
from octavo.kernels.gpu.attention import paged_attention

class Hopper:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Hopper())
run = jit.JITFunction.run
def compiled(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    assert kernel.asm["cubin"] and kernel.metadata.shared <= 227 * 1024, self.__name__
    print(self.__name__)
jit.JITFunction.run = compiled
for dtype, kv, dim, window, softcap in (
    (torch.bfloat16, torch.bfloat16, 128, None, None),
    (torch.float16, torch.int8, 80, None, 50.0),
    (torch.bfloat16, torch.float8_e4m3fn, 256, 100, None),
    (torch.float32, torch.float32, 64, None, None),
):
    cache = torch.zeros(4, 16, 2, dim).to(kv)
    scales = torch.zeros(4, 16, 2, dtype=torch.float16) if kv.itemsize == 1 else None
    numbers = torch.zeros(3, dtype=torch.int64)
    paged_attention(
        torch.zeros(2, 8, dim, dtype=dtype), cache, cache, torch.zeros(2, 40, dtype=torch.int64),
        numbers, numbers[:2], 1, 1.0, key_scales=scales, value_scales=scales, window=window,
        softcap=softcap, max_query_len=1,
    )
"""


def test_it_compiles_for_hopper() -> None:
    """The compiler is stricter than the interpreter; it needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = done.stdout.split()
    assert [names.count(f"{part}_kernel") for part in ("decode", "reduce", "prefill")] == [4, 3, 4]
