"""Model families: each is one mapping from its config.json to ModelConfig.

What an absent key means is what transformers' config class of the family says.
"""

from collections.abc import Callable
from dataclasses import replace

from octavo.errors import UnsupportedModelError
from octavo.models.architecture import Activation, ModelConfig, TensorNames
from octavo.models.config_section import ConfigSection
from octavo.models.rope_config import ROPE_KINDS, RopeConfig, RopeKind, read_rope

DTYPES = ("bfloat16", "float16", "float32")
MAX_LAYERS = 1024  # what is described layer by layer must not fill the memory

# Keys that change the mathematics, with the values that `_plain` computes; the first is what an
# absent key means. A family that reads such a key itself names it to `_plain`.
_ONLY: dict[str, tuple[object, ...]] = {
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "dual_chunk_attention_config": (None,),
    "use_mrope": (None, False),
    "is_causal": (None, True),
    "use_bidirectional_attention": (None, False),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "clip_qkv": (None,),
    "query_pre_attn_scalar": (None,),
    "partial_rotary_factor": (None, 1.0),
    "sliding_window": (None,),
    "layer_types": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _llama(config: ConfigSection) -> ModelConfig:
    config = config.with_defaults(max_position_embeddings=2048)
    bias = config.flag("attention_bias")
    return replace(
        _plain(config, _rope(config), reads=("attention_bias", "mlp_bias")),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
    )


def _mistral(config: ConfigSection) -> ModelConfig:
    config = config.with_defaults(max_position_embeddings=131_072)
    plain = _plain(config, _rope(config), reads=("sliding_window",))
    window = config.optional_size("sliding_window", 4096)
    return replace(plain, sliding_windows=(window,) * plain.num_layers)


def _qwen2(config: ConfigSection) -> ModelConfig:
    config = config.with_defaults(max_position_embeddings=32_768)
    reads = ("attention_bias", "sliding_window", "layer_types")
    return replace(
        _plain(config, _rope(config), reads),
        qkv_bias=True,  # whatever attention_bias says
        sliding_windows=_qwen_windows(config),
    )


def _qwen3(config: ConfigSection) -> ModelConfig:
    config = config.with_defaults(max_position_embeddings=32_768, head_dim=128)
    reads = ("attention_bias", "sliding_window", "layer_types")
    bias = config.flag("attention_bias")
    return replace(
        _plain(config, _rope(config), reads),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        sliding_windows=_qwen_windows(config),
    )


def _qwen_windows(config: ConfigSection) -> tuple[int | None, ...]:
    window = config.optional_size("sliding_window", 4096)
    if not config.flag("use_sliding_window"):
        window = None
    first = config.count("max_window_layers", 28)
    return _windows(config, window, lambda layer: window is not None and layer >= first)


def _phi3(config: ConfigSection) -> ModelConfig:
    config = config.with_defaults(
        max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5
    )
    rope = _rope(config, kinds=("default", "longrope"), reads_partial=True)
    plain = _plain(config, rope, reads=("sliding_window", "partial_rotary_factor"))
    return replace(
        plain,
        sliding_windows=(config.optional_size("sliding_window"),) * plain.num_layers,
        tensor_names=TensorNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
    )


_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


def _gemma2(config: ConfigSection) -> ModelConfig:
    config = config.with_defaults(max_position_embeddings=8192, **_GEMMA_DEFAULTS)
    return replace(
        _gemma(config, _rope(config), lambda layer: layer % 2 == 0),
        attention_softcap=config.optional_number("attn_logit_softcapping", 50.0),
        logits_softcap=config.optional_number("final_logit_softcapping", 30.0),
    )


def _gemma3(config: ConfigSection) -> ModelConfig:
    """The text model. Its layers with a window have a rotary embedding of their own."""
    config = config.with_defaults(max_position_embeddings=131_072, **_GEMMA_DEFAULTS)
    config.only("attn_logit_softcapping", None)
    ropes = config.section("rope_parameters", objects=(_FULL, _SLIDING))
    full, scaling = ropes.section(_FULL), config.section("rope_scaling")
    if scaling.values:
        full = scaling.with_defaults(**full.values)
    full = full.with_defaults(rope_theta=config.number("rope_theta", 1e6))
    sliding = ropes.section(_SLIDING).with_defaults(
        rope_theta=config.number("rope_local_base_freq", 1e4)
    )
    kinds: tuple[RopeKind, ...] = ("default", "linear")
    pattern = config.size("sliding_window_pattern", 6)
    return replace(
        _gemma(config, _rope_of(config, full, kinds), lambda layer: (layer + 1) % pattern != 0),
        qk_norm=True,
        sliding_rope=_rope_of(config, sliding, kinds),
        logits_softcap=config.optional_number("final_logit_softcapping"),
    )


def _gemma(
    config: ConfigSection, rope: RopeConfig, is_sliding: Callable[[int], bool]
) -> ModelConfig:
    reads = (
        "attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types",
        "attn_logit_softcapping", "final_logit_softcapping",
    )  # fmt: skip
    plain = _plain(config, rope, reads, activation_key="hidden_activation")
    bias = config.flag("attention_bias")
    return replace(
        plain,
        qkv_bias=bias,
        output_bias=bias,
        attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
        embedding_scale=plain.hidden_size**0.5,
        norm_offset=1.0,
        sliding_windows=_windows(config, config.optional_size("sliding_window", 4096), is_sliding),
        tensor_names=TensorNames(
            mlp_norm="pre_feedforward_layernorm",
            output_norm="post_attention_layernorm",
            down_norm="post_feedforward_layernorm",
        ),
    )


FAMILIES: dict[str, Callable[[ConfigSection], ModelConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Phi3ForCausalLM": _phi3,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
}


def _plain(
    config: ConfigSection,
    rope: RopeConfig,
    reads: tuple[str, ...] = (),
    activation_key: str = "hidden_act",
) -> ModelConfig:
    """What every family has. Refuses the keys of _ONLY that the family does not read itself."""
    for key, supported in _ONLY.items():
        if key not in reads:
            config.only(key, *supported)
    activation = config.values.get(activation_key, "silu")
    if activation not in [*_ACTIVATIONS]:  # a list: what is in the file may not be hashable
        raise UnsupportedModelError(activation_key, activation, ", ".join(_ACTIVATIONS))
    num_layers, head_dim = _num_layers(config), _head_dim(config)
    heads = config.size("num_attention_heads")
    return ModelConfig(
        vocab_size=config.size("vocab_size"),
        hidden_size=config.size("hidden_size"),
        intermediate_size=config.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=config.size("num_key_value_heads", heads),
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        max_position=config.size("max_position_embeddings"),
        tie_embeddings=config.flag("tie_word_embeddings"),
        rope=rope,
        attention_scale=head_dim**-0.5,
        sliding_windows=(None,) * num_layers,
        dtype=_dtype(config),
        is_dtype_named=any(config.values.get(key) for key in ("dtype", "torch_dtype")),
        activation=_ACTIVATIONS[activation],
    )


def _num_layers(config: ConfigSection) -> int:
    num_layers = config.size("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise UnsupportedModelError("num_hidden_layers", num_layers, f"up to {MAX_LAYERS}")
    return num_layers


def _head_dim(config: ConfigSection) -> int:
    heads = config.size("num_attention_heads")
    return config.size("head_dim", config.size("hidden_size") // heads)


def _dtype(config: ConfigSection) -> str:
    key = "dtype" if config.values.get("dtype") else "torch_dtype"
    dtype = config.values.get(key) or "float32"
    if dtype not in DTYPES:
        raise UnsupportedModelError(key, dtype, ", ".join(DTYPES))
    return str(dtype)


def _windows(
    config: ConfigSection, window: int | None, is_sliding: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """The window of each layer: by `layer_types`, or by the family's rule in older files."""
    num_layers = _num_layers(config)
    types = config.values.get("layer_types")
    if types is None:
        types = [_SLIDING if is_sliding(layer) else _FULL for layer in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise UnsupportedModelError("layer_types", types, f"a list of {num_layers}")
    for kind in types:
        if kind not in (_FULL, _SLIDING):
            raise UnsupportedModelError("layer_types", kind, f"{_FULL}, {_SLIDING}")
    if window is None and _SLIDING in types:
        raise UnsupportedModelError("sliding_window", None, f"a number, with layers of {_SLIDING}")
    return tuple(window if kind == _SLIDING else None for kind in types)


def _rope(
    config: ConfigSection,
    kinds: tuple[RopeKind, ...] = ROPE_KINDS,
    reads_partial: bool = False,
) -> RopeConfig:
    """From `rope_theta` and `rope_scaling`, or `rope_parameters` (transformers 5, where the
    older name goes first too)."""
    where = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    section = config.section(where).with_defaults(rope_theta=config.number("rope_theta", 10_000.0))
    original = config.optional_size("original_max_position_embeddings")
    if original is not None:  # goes before the section's own
        section = section.overridden(original_max_position_embeddings=original)
    return _rope_of(config, section, kinds, reads_partial)


def _rope_of(
    config: ConfigSection,
    section: ConfigSection,
    kinds: tuple[RopeKind, ...],
    reads_partial: bool = False,
) -> RopeConfig:
    rotary_dim = head_dim = _head_dim(config)
    if reads_partial:
        share = section.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
        rotary_dim = int(head_dim * share)
        if share != 1 and (share > 1 or rotary_dim % 2 or not rotary_dim):
            limit = f"up to 1, with an even number of head_dim = {head_dim}"
            raise UnsupportedModelError(section.path("partial_rotary_factor"), share, limit)
    else:
        section.only("partial_rotary_factor", None, 1.0)
    return read_rope(section, rotary_dim, config.size("max_position_embeddings"), kinds)
