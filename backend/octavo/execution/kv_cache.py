"""KV memory of all layers, one tensor for keys and one for values."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """keys, values: [num_layers, num_blocks, block_size, num_kv_heads, head_dim].

    Slot `block_id * block_size + offset` holds one token; a block of one layer is contiguous,
    so that a kernel reads it in one stretch.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "KVCache":
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to), in all layers. All are read before any is written."""
        if copies:
            sources, targets = zip(*copies, strict=True)
            for cache in (self.keys, self.values):
                cache[:, list(targets)] = cache[:, list(sources)]

    @property
    def num_blocks(self) -> int:
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
