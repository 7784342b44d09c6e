"""A name for what the bytes of a KV block mean."""

from dataclasses import replace
from hashlib import blake2b

from octavo.models.model_config import ModelConfig
from octavo.quantization.kv import LAYOUT_VERSION, KVLayout
from octavo.quantization.weights import ROUNDING_VERSION, WeightFormat, matrix_format

NAMESPACE_BYTES = 16


def kv_namespace(
    checkpoint_digest: bytes,
    model: ModelConfig,
    compute_dtype: str,
    weights: WeightFormat,
    layout: KVLayout,
    max_model_len: int,
) -> bytes:
    """Equal where the same tokens give the same block row, but for rounding of other kernels: one
    engine's blocks may then serve another, or the same after a restart.

    It covers the weights and the layers' format of them, all that the decoder computes by, and
    format, size and layout of the blocks. The lm_head's format is not in it, nor where sequences
    end, nor how long a context may be, but for longrope, which chooses its frequencies by that
    (rope_frequencies).
    """
    is_longrope = any(rope.kind == "longrope" for rope in model.layer_ropes)
    parts = (
        LAYOUT_VERSION,
        replace(model, eos_token_ids=()),
        compute_dtype,
        (ROUNDING_VERSION, matrix_format(weights, "layer")) if weights.is_quantized else None,
        layout,
        max_model_len if is_longrope else None,
    )
    name = blake2b(checkpoint_digest, digest_size=NAMESPACE_BYTES, person=b"octavo-kv-bytes")
    name.update("\n".join(map(repr, parts)).encode())
    return name.digest()
