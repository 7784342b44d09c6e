"""KV memory: its shape, its bytes, and that a slot is where slot_mapping says."""

import pytest
import torch

from octavo import kernels
from octavo.execution.kv_cache import KVCache


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_allocate(dtype: torch.dtype, width: int) -> None:
    cache = KVCache.allocate(
        num_layers=3, num_blocks=5, block_size=4, num_kv_heads=2, head_dim=6,
        dtype=dtype, device=torch.device("cpu"),
    )  # fmt: skip
    assert cache.keys.shape == cache.values.shape == (3, 5, 4, 2, 6)
    assert (cache.num_blocks, cache.block_size) == (5, 4)
    assert cache.num_bytes == 2 * 3 * 5 * 4 * 2 * 6 * width
    assert not cache.keys.any() and not cache.values.any()
    assert cache.keys.data_ptr() != cache.values.data_ptr()


def test_slot_is_block_times_block_size_plus_offset() -> None:
    cache = KVCache.allocate(
        num_layers=2, num_blocks=5, block_size=4, num_kv_heads=1, head_dim=2,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    ones = torch.ones(1, 1, 2)
    kernels.store_kv(ones, 2 * ones, cache.keys[1], cache.values[1], torch.tensor([3 * 4 + 2]))
    assert cache.keys.nonzero()[:, :3].tolist() == [[1, 3, 2]] * 2
    assert (cache.values[1, 3, 2] == 2).all()
