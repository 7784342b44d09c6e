"""A checkpoint's sizes, as the planner's formulas take them."""

from __future__ import annotations

from octavo.models.architecture import ModelConfig
from octavo.planner.model import ModelSizes
from octavo.planner.roofline import DecoderShape
from octavo.quantization.weights import WEIGHT_FORMATS


def decoder_shape(model: ModelConfig) -> DecoderShape:
    return DecoderShape(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
    )


def model_sizes(model: ModelConfig, name: str, compute_dtype: str = "auto") -> ModelSizes:
    dtype = model.dtype if compute_dtype == "auto" else compute_dtype
    number_bytes = WEIGHT_FORMATS[dtype].weight_bits // 8
    # Norms with an offset are float32.
    norm_bytes = 4 if model.norm_offset else number_bytes
    shape, names = decoder_shape(model), model.tensor_names
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    bias_numbers = (
        model.qkv_bias * heads
        + model.output_bias * model.hidden_size
        + model.mlp_bias * (2 * model.intermediate_size + model.hidden_size)
    )
    norms = 2 + (names.output_norm is not None) + (names.down_norm is not None)
    norm_numbers = norms * model.hidden_size + model.qk_norm * 2 * model.head_dim
    stored = model.stored_format
    return ModelSizes(
        name=name,
        shape=shape,
        max_context_tokens=model.max_position,
        dtype=dtype,
        tie_embeddings=model.tie_embeddings,
        layer_vector_bytes=bias_numbers * number_bytes + norm_numbers * norm_bytes,
        final_norm_bytes=model.hidden_size * norm_bytes,
        windows=model.sliding_windows,
        stored_format=None if stored is None else stored.weight_format(dtype),
        is_dtype_named=model.is_dtype_named or compute_dtype != "auto",
    )
