"""What the decoder computes: one frozen description, whatever family it was read from."""

from dataclasses import dataclass
from typing import Literal

from octavo.errors import UnsupportedModelError
from octavo.models.rope_config import RopeConfig
from octavo.quantization.weights import StoredFormat

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class TensorNames:
    """A layer's modules that families name differently, below `model.layers.<index>`.

    `qkv` and `gate_up` are stacked in this order, unless the checkpoint has done so: one name.
    `output_norm` and `down_norm`, on the outputs of attention and MLP, exist if they have a name.
    """

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_norm: str = "post_attention_layernorm"
    output_norm: str | None = None
    down_norm: str | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and mathematics of one decoder. What has a default is as in a Llama without biases.

    sliding_windows: of each layer; a token attends to that many tokens, itself included
        (None: to all before it)
    sliding_rope: of the layers with a window, where it differs from `rope`
    norm_offset: added to the weight of each norm
    embedding_scale: embeddings are multiplied by it, rounded to their own type
    stored_format: of the matrices that the checkpoint has quantized; None: it has none
    attention_softcap, logits_softcap: of kernels.apply_softcap, on the scores and on the logits
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    tie_embeddings: bool
    rope: RopeConfig
    attention_scale: float
    sliding_windows: tuple[int | None, ...]
    dtype: str
    eos_token_ids: tuple[int, ...] = ()
    activation: Activation = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_rope: RopeConfig | None = None
    norm_offset: float = 0.0
    embedding_scale: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    tensor_names: TensorNames = TensorNames()
    stored_format: StoredFormat | None = None
    is_dtype_named: bool = True  # else `dtype` is what an absent one means

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                "num_key_value_heads", self.num_kv_heads,
                f"a divisor of num_attention_heads = {self.num_heads}",
            )  # fmt: skip
        if self.head_dim % 2:
            raise UnsupportedModelError("head_dim", self.head_dim, "an even number")

    @property
    def layer_ropes(self) -> tuple[RopeConfig, ...]:
        """The rotary embedding of each layer."""
        sliding = self.sliding_rope or self.rope
        return tuple(self.rope if window is None else sliding for window in self.sliding_windows)
