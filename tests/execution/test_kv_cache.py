"""KV memory: where in a block's row each number lies, and rows that move as they are."""

import numpy as np
import pytest
import torch

from octavo import kernels
from octavo.execution.kv_cache import KVCache
from octavo.quantization.kv import KV_FORMATS, KVLayout

CPU = torch.device("cpu")
FORMATS = pytest.mark.parametrize("name", KV_FORMATS)


def make_cache(*names: str, num_blocks: int = 5, block_size: int = 4, **shape: int) -> KVCache:
    shape = {"num_kv_heads": 2, "head_dim": 6, **shape}
    layout = KVLayout(tuple(KV_FORMATS[name] for name in names), block_size, **shape)
    return KVCache.allocate(layout, num_blocks, CPU)


def scatter(cache: KVCache) -> None:
    """Other bytes in every row."""
    generator = torch.Generator().manual_seed(0)
    cache.storage.copy_(torch.randint(0, 256, cache.storage.shape, generator=generator))


@FORMATS
def test_allocate(name: str) -> None:
    cache = make_cache(name, name, name)
    assert cache.storage.shape == (5, cache.layout.block_bytes)
    assert cache.storage.dtype == torch.uint8 and cache.storage.is_contiguous()
    assert not cache.storage.any()
    assert (cache.num_blocks, cache.block_size, cache.block_bytes) == (
        5, 4, cache.layout.block_bytes,
    )  # fmt: skip
    assert cache.num_bytes == 5 * cache.block_bytes
    assert len(cache.layers) == 3
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (5, 4, 2, 6)
        assert layer.keys.dtype == getattr(torch, KV_FORMATS[name].dtype)
        for scales in (layer.key_scales, layer.value_scales):
            if KV_FORMATS[name].is_quantized:
                assert scales is not None
                assert scales.shape == (5, 4, 2) and scales.dtype == torch.float16
            else:
                assert scales is None


@pytest.mark.parametrize(
    "names", [("float32",) * 3, ("int8",) * 2, ("bfloat16", "int8", "fp8", "float16")]
)
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize(("num_kv_heads", "head_dim"), [(1, 2), (3, 10), (2, 64)])
def test_every_part_has_bytes_of_its_own(
    names: tuple[str, ...], block_size: int, num_kv_heads: int, head_dim: int
) -> None:
    """Aligned to 64 bytes, in the order of the layers, and together they are the row."""
    cache = make_cache(*names, block_size=block_size, num_kv_heads=num_kv_heads, head_dim=head_dim)
    begin = cache.storage.data_ptr()
    end = 0
    for index, layer in enumerate(cache.layers):
        parts = (layer.keys, layer.values, layer.key_scales, layer.value_scales)
        for part in (part for part in parts if part is not None):
            offset = part.data_ptr() - begin
            assert offset % 64 == 0 and end <= offset < end + 64
            assert part[0].is_contiguous()
            assert part.stride(0) * part.itemsize == cache.block_bytes
            end = offset + part[0].nbytes
        assert -(-end // 64) * 64 == sum(map(cache.layout.layer_bytes, range(index + 1)))
    assert cache.block_bytes - 64 < end <= cache.block_bytes


def test_a_layers_share_of_a_block_is_the_articles_page() -> None:
    """16 KB hold the keys and values of 4 tokens with 8 heads of 128 numbers, one layer, bf16."""
    cache = make_cache("bfloat16", "bfloat16", block_size=4, num_kv_heads=8, head_dim=128)
    assert cache.layout.layer_bytes(0) == 16384 and cache.block_bytes == 2 * 16384
    assert KV_FORMATS["bfloat16"].bytes_per_token(8, 128) * 4 == 16384


@FORMATS
def test_slot_is_block_times_block_size_plus_offset(name: str) -> None:
    cache = make_cache("bfloat16", name)
    layer = cache.layers[1]
    ones = torch.ones(1, 2, 6)
    kernels.store_kv(
        ones, 2 * ones, layer.keys, layer.values, torch.tensor([3 * 4 + 2]),
        layer.key_scales, layer.value_scales,
    )  # fmt: skip
    for numbers, scales, expected in (
        (layer.keys, layer.key_scales, 1), (layer.values, layer.value_scales, 2),
    ):  # fmt: skip
        wide = numbers.float() * (1 if scales is None else scales.float().unsqueeze(-1))
        assert wide.nonzero()[:, :2].tolist() == [[3, 2]] * 12
        torch.testing.assert_close(
            wide[3, 2], torch.full((2, 6), float(expected)), rtol=1e-3, atol=0
        )
    assert cache.storage.any(1).tolist() == [False, False, False, True, False]
    assert not cache.layers[0].keys.any() and not cache.layers[0].values.any()


def test_copies_are_read_before_any_is_written() -> None:
    cache = make_cache("bfloat16", "int8")
    scatter(cache)
    before = cache.storage.clone()
    cache.copy_blocks([(0, 1), (1, 0), (1, 4)])
    assert torch.equal(cache.storage, before[[1, 0, 2, 3, 1]])
    cache.copy_blocks([])
    assert torch.equal(cache.storage, before[[1, 0, 2, 3, 1]])


def test_read_blocks_is_a_copy() -> None:
    cache = make_cache("int8", "int8")
    scatter(cache)
    rows = cache.read_blocks([3, 0, 3])
    assert rows.shape == (3, cache.block_bytes) and rows.dtype == np.uint8
    assert np.array_equal(rows, cache.storage.numpy()[[3, 0, 3]])
    kept = cache.storage.clone()
    rows[:] = 0
    assert torch.equal(cache.storage, kept)
    assert cache.read_blocks([]).shape == (0, cache.block_bytes)


@pytest.mark.parametrize("kind", ["array", "rows", "bytes", "bytearray", "memoryview"])
def test_written_blocks_are_those_that_were_read(kind: str) -> None:
    source, target = make_cache("bfloat16", "fp8"), make_cache("bfloat16", "fp8", num_blocks=7)
    scatter(source)
    rows = source.read_blocks([4, 1])
    given = {
        "array": rows,
        "rows": list(rows),
        "bytes": [row.tobytes() for row in rows],
        "bytearray": [bytearray(row) for row in rows],
        "memoryview": [memoryview(row) for row in rows],
    }[kind]
    target.write_blocks([6, 2], given)
    assert torch.equal(target.storage[[6, 2]], source.storage[[4, 1]])
    assert target.storage.any(1).nonzero().flatten().tolist() == [2, 6]
    target.write_blocks([], [])


@pytest.mark.parametrize("blocks", [[-1], [5], [0, -1]])
def test_ids_of_no_block_are_refused(blocks: list[int]) -> None:
    cache = make_cache("float32")
    rows = [bytes(cache.block_bytes)] * len(blocks)
    with pytest.raises(AssertionError, match="out of bounds"):
        cache.read_blocks(blocks)
    with pytest.raises(AssertionError, match="out of bounds"):
        cache.write_blocks(blocks, rows)
    with pytest.raises(AssertionError, match="out of bounds"):
        cache.copy_blocks([(0, block) for block in blocks])


def test_rows_of_another_size_are_refused() -> None:
    cache = make_cache("float32")
    with pytest.raises(AssertionError):
        cache.write_blocks([0], [bytes(cache.block_bytes - 1)])
    with pytest.raises(AssertionError):
        cache.write_blocks([0, 1], [bytes(cache.block_bytes)])
    with pytest.raises(AssertionError):
        cache.write_blocks([1, 1], [bytes(cache.block_bytes)] * 2)
