"""Formats of KV memory: what a block holds, where in the block, in how many bytes.

Standard library only: whoever plans memory counts with it, without torch.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from octavo.errors import ConfigError

# Of what a block's bytes mean; raised with every change of KVLayout.
LAYOUT_VERSION = 1
# Each part of a block begins at a cache line, which is also as wide as AVX-512's vectors.
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class KVFormat:
    """How one layer's keys and values are stored.

    `dtype` is torch's name of the stored type. A quantized number is stored · scale, with a
    float16 scale for each token and KV head, one of its key and one of its value; the others
    are casts. What reads and writes them is kernels.store_kv and kernels.paged_attention.
    """

    name: str
    dtype: str
    value_bytes: int
    scale_bytes: int = 0

    @property
    def is_quantized(self) -> bool:
        return self.scale_bytes > 0

    def bytes_per_token(self, num_kv_heads: int, head_dim: int) -> int:
        """Of one layer, keys and values with their scales."""
        return 2 * num_kv_heads * (head_dim * self.value_bytes + self.scale_bytes)

    def block_bytes(self, block_size: int, num_kv_heads: int, head_dim: int) -> int:
        """Of one layer's share of a block, with what aligns its parts."""
        rows = block_size * num_kv_heads
        return 2 * (
            _aligned(rows * head_dim * self.value_bytes) + _aligned(rows * self.scale_bytes)
        )


KV_FORMATS = {
    kv_format.name: kv_format
    for kv_format in (
        KVFormat("float32", "float32", 4),
        KVFormat("bfloat16", "bfloat16", 2),
        KVFormat("float16", "float16", 2),
        KVFormat("int8", "int8", 1, scale_bytes=2),
        KVFormat("fp8", "float8_e4m3fn", 1, scale_bytes=2),
    )
}


def layer_formats(
    kv_cache_dtype: str, skip_layers: Collection[int], num_layers: int, compute_dtype: str
) -> tuple[KVFormat, ...]:
    """Of each layer: "auto" and the layers skipped are stored as they are computed.

    Raises ConfigError for a layer that the model does not have.
    """
    for layer in skip_layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(
                f"kv_cache_skip_layers: layer {layer}; the model's are 0 to {num_layers - 1}"
            )
    own = KV_FORMATS[compute_dtype]
    chosen = own if kv_cache_dtype == "auto" else KV_FORMATS[kv_cache_dtype]
    return tuple(own if layer in skip_layers else chosen for layer in range(num_layers))


@dataclass(frozen=True, slots=True)
class LayerPlaces:
    """Where in a block's row one layer's parts begin, in bytes."""

    keys: int
    values: int
    key_scales: int
    value_scales: int
    end: int


@dataclass(frozen=True, slots=True)
class KVLayout:
    """A block is one row of bytes:

        layer 0: keys · values · key scales · value scales │ layer 1: … │ …

    keys, values [block_size, num_kv_heads, head_dim] and scales [block_size, num_kv_heads] of
    the layer's format. So a layer's share of a block is one stretch for the kernel that reads
    it, and the whole block is one for what copies or moves it.
    """

    formats: tuple[KVFormat, ...]  # of each layer
    block_size: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        kinds = Counter((own.name, self.layer_bytes(i)) for i, own in enumerate(self.formats))
        layers = " and ".join(
            f"{count} layers of {name} with {num_bytes} bytes"
            for (name, num_bytes), count in kinds.items()
        )
        return f"{self.block_size} tokens, {self.block_bytes} bytes, in {layers}"

    @property
    def block_bytes(self) -> int:
        """Of a whole block, all layers."""
        return sum(map(self.layer_bytes, range(len(self.formats))))

    def layer_bytes(self, layer: int) -> int:
        """Of one layer's share of a block."""
        return self.formats[layer].block_bytes(self.block_size, self.num_kv_heads, self.head_dim)

    def places(self) -> tuple[LayerPlaces, ...]:
        """Of every layer."""
        found, begin = [], 0
        rows = self.block_size * self.num_kv_heads
        for layer, own in enumerate(self.formats):
            numbers = _aligned(rows * self.head_dim * own.value_bytes)
            scales = _aligned(rows * own.scale_bytes)
            values, key_scales = begin + numbers, begin + 2 * numbers
            end = begin + self.layer_bytes(layer)
            assert end == key_scales + 2 * scales
            found.append(LayerPlaces(begin, values, key_scales, key_scales + scales, end))
            begin = end
        return tuple(found)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
