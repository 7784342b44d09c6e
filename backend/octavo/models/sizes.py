"""A checkpoint's sizes, as the planner's formulas take them."""

from __future__ import annotations

from octavo.models.architecture import ModelConfig
from octavo.planner.roofline import DecoderShape


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
