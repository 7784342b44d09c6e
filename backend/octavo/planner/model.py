"""What a model weighs: bytes of its weights and of its keys and values, by format."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.planner.roofline import DecoderShape
from octavo.quantization.kv import KVLayout, layer_formats
from octavo.quantization.weights import (
    GROUP_SIZES,
    WEIGHT_FORMATS,
    WeightFormat,
    matrix_format,
    weight_format,
)

BLOCK_TOKENS = 16  # the engine's, unless a setting says otherwise


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Of a checkpoint.

    max_context_tokens: that it has positions for
    dtype: in which it is computed
    layer_vector_bytes: of one layer's norms and biases
    final_norm_bytes: of the norm before the lm_head
    windows: of each layer, tokens that one attends to; None: all
    stored_format: of layers that the checkpoint has quantized itself
    is_dtype_named: by its config or whoever plans; else `dtype` is what an absent one means
    """

    name: str
    shape: DecoderShape
    max_context_tokens: int
    dtype: str
    tie_embeddings: bool
    layer_vector_bytes: int
    final_norm_bytes: int
    windows: tuple[int | None, ...]
    stored_format: WeightFormat | None = None
    is_dtype_named: bool = True

    @property
    def common_window(self) -> int | None:
        """The longest, if every layer has one: what is behind it is given back."""
        bounded = [window for window in self.windows if window is not None]
        return max(bounded) if len(bounded) == len(self.windows) else None

    def read_context_tokens(self, context_tokens: float) -> float:
        """Of a context, those whose keys and values a step reads: mean of the layers."""
        lengths = [
            context_tokens if window is None else min(context_tokens, window)
            for window in self.windows
        ]
        return sum(lengths) / len(lengths)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """stored: all of them; step: those that a step reads, each once. An embedding that is the
    lm_head too is both; of another one, a step reads a row for each token."""

    stored: int
    step: int


def format_of(model: ModelSizes, name: str = "auto", group_size: int | None = None) -> WeightFormat:
    """Of a setting `weight_format`; without a group size the largest that the model's rows are
    multiples of. Raises ConfigError if there is none."""
    if model.stored_format is not None:
        if name == "auto":
            return model.stored_format
        raise ConfigError(
            f"weight_format = {name!r}: the checkpoint's weights are quantized already "
            f"({model.stored_format}); use 'auto'"
        )
    widths = [width for _, width in model.shape.layer_matrices().values()]
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    own = weight_format(name, group_size or max(fitting, default=GROUP_SIZES[0]), model.dtype)
    for matrix, (_, width) in model.shape.layer_matrices().items():
        own.check_fits(f"{model.name} {matrix}", width)
    return own


def weight_bytes(model: ModelSizes, own: WeightFormat, lm_head_format: str = "auto") -> WeightBytes:
    shape = model.shape
    head = (
        WEIGHT_FORMATS[model.dtype]
        if model.stored_format is not None
        else matrix_format(own, "lm_head", lm_head_format)
    )
    matrices = sum(own.num_bytes(*matrix) for matrix in shape.layer_matrices().values())
    step = (
        shape.num_layers * (matrices + model.layer_vector_bytes)
        + model.final_norm_bytes
        + head.num_bytes(*shape.lm_head)
    )
    is_one = model.tie_embeddings and not head.is_quantized
    embedding = 0 if is_one else WEIGHT_FORMATS[model.dtype].num_bytes(*shape.lm_head)
    return WeightBytes(stored=step + embedding, step=step)


def kv_layout(
    model: ModelSizes, kv_cache_dtype: str = "auto", block_tokens: int = BLOCK_TOKENS
) -> KVLayout:
    shape = model.shape
    return KVLayout(
        formats=layer_formats(kv_cache_dtype, (), shape.num_layers, model.dtype),
        block_size=block_tokens,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )


def kv_token_bytes(layout: KVLayout) -> float:
    """Keys and values of one token, all layers."""
    return layout.block_bytes / layout.block_size
