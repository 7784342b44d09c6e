"""KV memory of all layers: one row of bytes for each block."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo import kernels
from octavo.execution.host_copies import sent
from octavo.kernels.operators import Operators
from octavo.quantization.kv import KVLayout, LayerPlaces

# Whatever gives its bytes: an array, bytes, a mapped page of a file.
BlockRow = NDArray[np.uint8] | bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class KVLayer:
    """Views of one layer's share of every block, strided by whole blocks.

    keys, values: [num_blocks, block_size, num_kv_heads, head_dim]
    key_scales, value_scales: [num_blocks, block_size, num_kv_heads] float16, or None where the
        format has none
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None


@dataclass(frozen=True, slots=True)
class KVCache:
    """storage: [num_blocks, block_bytes] uint8, each row as `layout` says.

    Slot `block_id * block_size + offset` holds one token, in all layers.
    """

    storage: Tensor
    layout: KVLayout
    layers: tuple[KVLayer, ...]
    operators: Operators

    @classmethod
    def allocate(
        cls,
        layout: KVLayout,
        num_blocks: int,
        device: torch.device,
        operators: Operators = kernels,
    ) -> "KVCache":
        """`operators` move its blocks."""
        storage = torch.zeros(num_blocks, layout.block_bytes, dtype=torch.uint8, device=device)
        layers = [_layer(storage, layout, *each) for each in enumerate(layout.places())]
        return cls(storage, layout, tuple(layers), operators)

    @property
    def num_blocks(self) -> int:
        return self.storage.shape[0]

    @property
    def block_size(self) -> int:
        return self.layout.block_size

    @property
    def block_bytes(self) -> int:
        return self.storage.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.storage.nbytes

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to), in all layers. All are read before any is written;
        none is written twice."""
        if copies:
            sources, targets = zip(*copies, strict=True)
            assert len(set(targets)) == len(targets), copies
            rows = self._rows(sources)
            self.operators.scatter_blocks(self.storage, self._index(targets), rows)

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        """A copy of the blocks on the host, [n, block_bytes]: one gather, one transfer."""
        rows: NDArray[np.uint8] = self._rows(blocks).cpu().numpy()
        return rows

    def write_blocks(
        self, blocks: Sequence[int], rows: Sequence[BlockRow] | NDArray[np.uint8]
    ) -> None:
        """Fills each of `blocks`, all different, with block_bytes from the host: one transfer."""
        assert len(set(blocks)) == len(blocks) == len(rows), (blocks, len(rows))
        if not blocks:
            return
        host = np.empty((len(rows), self.block_bytes), dtype=np.uint8)
        for target, row in zip(host, rows, strict=True):
            given = np.frombuffer(row, dtype=np.uint8)
            assert len(given) == self.block_bytes, (len(given), self.block_bytes)
            target[:] = given
        moved = torch.from_numpy(host).to(self.storage.device)
        self.operators.scatter_blocks(self.storage, self._index(blocks), moved)

    def _rows(self, blocks: Sequence[int]) -> Tensor:
        return self.operators.gather_blocks(self.storage, self._index(blocks))

    def _index(self, blocks: Sequence[int]) -> Tensor:
        assert all(0 <= block < self.num_blocks for block in blocks), f"{blocks}: out of bounds"
        return sent(list(blocks), self.storage.device)


def _layer(storage: Tensor, layout: KVLayout, layer: int, places: LayerPlaces) -> KVLayer:
    own = layout.formats[layer]
    rows = (layout.block_size, layout.num_kv_heads)

    def part(begin: int, dtype: torch.dtype, *shape: int) -> Tensor:
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        return storage[:, begin : begin + num_bytes].view(dtype).view(-1, *shape)

    def numbers(begin: int) -> Tensor:
        return part(begin, getattr(torch, own.dtype), *rows, layout.head_dim)

    def scales(begin: int) -> Tensor | None:
        return part(begin, torch.float16, *rows) if own.is_quantized else None

    return KVLayer(
        numbers(places.keys), numbers(places.values),
        scales(places.key_scales), scales(places.value_scales),
    )  # fmt: skip
