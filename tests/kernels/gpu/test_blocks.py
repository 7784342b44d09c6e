"""Blocks that move, against their reference, and a KVCache that moves its own in this way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo import kernels
from octavo.execution.kv_cache import KVCache
from octavo.kernels import gpu
from octavo.kernels.gpu.blocks import gather_blocks, scatter_blocks
from octavo.quantization.kv import KV_FORMATS, KVLayout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(num_blocks: int, num_bytes: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(0, 256, (num_blocks, num_bytes), generator=generator)
    return numbers.to(DEVICE, torch.uint8)


def pool(num_blocks: int, num_bytes: int) -> tuple[Tensor, Tensor]:
    """A pool that is part of a larger one, and the larger one, to see what is written beside it."""
    larger = drawn(num_blocks + 4, num_bytes)
    return larger[2 : 2 + num_blocks], larger


def ids(*blocks: int) -> Tensor:
    return torch.tensor(blocks, dtype=torch.int64, device=DEVICE)


# A program moves 8,192 bytes of a row.
@pytest.mark.parametrize("num_bytes", [8, 64, 8192, 8192 + 64, 3 * 8192])
def test_blocks_move(num_bytes: int) -> None:
    storage, larger = pool(7, num_bytes)
    before = larger.clone()
    rows = gather_blocks(storage, ids(6, 0, 3, 0))
    assert rows.shape == (4, num_bytes) and rows.dtype is torch.uint8
    assert torch.equal(rows, kernels.gather_blocks(storage, ids(6, 0, 3, 0)))
    assert torch.equal(larger, before)
    kernels.scatter_blocks(before[2:9], ids(1, 2, 6, 5), rows)
    scatter_blocks(storage, ids(1, 2, 6, 5), rows)
    assert torch.equal(larger, before) and torch.equal(storage[[1, 2, 6, 5]], rows)


def test_blocks_that_are_none_are_left_alone() -> None:
    storage, larger = pool(4, 128)
    before = larger.clone()
    none = ids(-1, 4, 2**40, -(2**40))
    rows = gather_blocks(storage, torch.cat([none, ids(2)]))
    assert not rows[:4].any() and torch.equal(rows[4], storage[2])
    scatter_blocks(storage, none, drawn(4, 128))
    assert torch.equal(larger, before)
    assert gather_blocks(storage, ids()).shape == (0, 128)
    scatter_blocks(storage, ids(), drawn(0, 128))
    assert torch.equal(larger, before)


def test_rows_that_do_not_fit_are_refused() -> None:
    storage, _ = pool(4, 128)
    for rows in (
        drawn(2, 120),
        drawn(3, 128),
        drawn(2, 256)[:, :128],
        drawn(2, 128).to(torch.int8),
    ):
        with pytest.raises(AssertionError):
            scatter_blocks(storage, ids(0, 1), rows)
    for other in (drawn(4, 12), drawn(4, 256)[:, :128], drawn(4, 128).to(torch.int8)):
        with pytest.raises(AssertionError):
            gather_blocks(other, ids(0))
    with pytest.raises(AssertionError):
        gather_blocks(storage, ids(0, 1, 2)[::2])


def make_cache() -> KVCache:
    layout = KVLayout((KV_FORMATS["bfloat16"], KV_FORMATS["int8"]), 16, num_kv_heads=2, head_dim=24)
    cache = KVCache.allocate(layout, 6, torch.device(DEVICE), gpu)
    cache.storage.copy_(drawn(6, cache.block_bytes))
    return cache


def test_copies_are_read_before_any_is_written() -> None:
    cache = make_cache()
    before = cache.storage.clone()
    cache.copy_blocks([(0, 1), (1, 2), (2, 0), (2, 5), (4, 4)])  # a ring, and from it
    assert torch.equal(cache.storage, before[[2, 0, 1, 3, 4, 2]])
    cache.copy_blocks([])
    assert torch.equal(cache.storage, before[[2, 0, 1, 3, 4, 2]])


def test_blocks_go_to_the_host_and_back() -> None:
    cache = make_cache()
    before = cache.storage.clone()
    rows = cache.read_blocks([5, 0, 5])
    assert torch.equal(torch.from_numpy(rows), before[[5, 0, 5]].cpu())
    cache.write_blocks([1, 3], [rows[0].tobytes(), rows[1]])
    assert torch.equal(cache.storage, before[[0, 5, 2, 0, 4, 5]])
    assert cache.read_blocks([]).shape == (0, cache.block_bytes)
    cache.write_blocks([], [])


@pytest.mark.parametrize("block", [-1, 6, 2**40])
def test_ids_of_no_block_are_refused(block: int) -> None:
    cache = make_cache()
    before = cache.storage.clone()
    for act in (
        lambda: cache.read_blocks([0, block]),
        lambda: cache.write_blocks([0, block], [bytes(cache.block_bytes)] * 2),
        lambda: cache.copy_blocks([(1, 0), (2, block)]),
        lambda: cache.copy_blocks([(1, 0), (block, 2)]),
    ):
        with pytest.raises(AssertionError, match="out of bounds"):
            act()
    assert torch.equal(cache.storage, before)


def test_a_block_is_not_written_twice() -> None:
    cache = make_cache()
    with pytest.raises(AssertionError):
        cache.copy_blocks([(0, 2), (1, 2)])
