"""A Hugging Face config.json, read into what the decoder needs; the rest is refused by name."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.errors import ConfigError, UnsupportedModelError

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; the last four belong to `llama3`, `factor` to `linear` too."""

    kind: Literal["default", "linear", "llama3"]
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and mathematics of one decoder."""

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
    attention_bias: bool
    mlp_bias: bool
    rope: RopeConfig
    dtype: str
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                "num_key_value_heads", self.num_kv_heads,
                f"a divisor of num_attention_heads = {self.num_heads}",
            )  # fmt: skip
        if self.head_dim % 2:
            raise UnsupportedModelError("head_dim", self.head_dim, "an even number")

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in KV memory, all layers, keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def read_model_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder.

    Raises ConfigError if it cannot be read, UnsupportedModelError (naming key and value) if the
    decoder cannot compute it.
    """
    config = _read_json(folder / "config.json")
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModelError("architectures", architectures, ", ".join(FAMILIES))
    return family(config, folder)


def _llama(config: dict[str, Any], folder: Path) -> ModelConfig:
    for key, supported in _ONLY.items():
        if config.get(key, supported[0]) not in supported:
            raise UnsupportedModelError(key, config[key], " or ".join(map(repr, supported)))
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    vocab_size = _size(config, "vocab_size")
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", hidden // heads),
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        max_position=_size(config, "max_position_embeddings", 2048),
        tie_embeddings=_flag(config, "tie_word_embeddings"),
        attention_bias=_flag(config, "attention_bias"),
        mlp_bias=_flag(config, "mlp_bias"),
        rope=_rope(config),
        dtype=_dtype(config),
        eos_token_ids=_eos_token_ids(config, folder, vocab_size),
    )


# A family is one mapping from its config to ModelConfig.
FAMILIES: dict[str, Callable[[dict[str, Any], Path], ModelConfig]] = {"LlamaForCausalLM": _llama}

# Keys that change the mathematics, with the values that the decoder computes; the first is
# what an absent key means.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "sliding_window": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
}

_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def _rope(config: dict[str, Any]) -> RopeConfig:
    """From `rope_theta` and `rope_scaling`, or `rope_parameters` (transformers 5, where the
    older name goes first too)."""
    where = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.get(where) or {}
    if not isinstance(scaling, dict) or any(isinstance(v, dict) for v in scaling.values()):
        raise UnsupportedModelError(where, scaling, "one object for all layers")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in [*_ROPE_KEYS]:  # a list: what is in the file may not be hashable
        raise UnsupportedModelError(f"{where}.rope_type", kind, ", ".join(_ROPE_KEYS))
    missing = [key for key in _ROPE_KEYS[kind] if key not in scaling]
    if missing:
        raise ConfigError(f"config.json: {where} of type {kind} lacks {', '.join(missing)}")
    partial = scaling.get("partial_rotary_factor")
    if partial not in (None, 1.0):
        raise UnsupportedModelError(f"{where}.partial_rotary_factor", partial, "1.0")
    low = _number(scaling, "low_freq_factor", 1.0, where)
    high = _number(scaling, "high_freq_factor", 4.0, where)
    if low >= high:
        raise UnsupportedModelError(f"{where}.low_freq_factor", low, f"less than {high}")
    return RopeConfig(
        kind=kind,
        theta=_number(scaling, "rope_theta", _number(config, "rope_theta", 10_000.0), where),
        factor=_number(scaling, "factor", 1.0, where),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_size(scaling, "original_max_position_embeddings", 1, where),
    )


def _dtype(config: dict[str, Any]) -> str:
    key = "dtype" if config.get("dtype") else "torch_dtype"
    dtype = config.get(key) or "float32"
    if dtype not in DTYPES:
        raise UnsupportedModelError(key, dtype, ", ".join(DTYPES))
    return str(dtype)


def _eos_token_ids(config: dict[str, Any], folder: Path, vocab_size: int) -> tuple[int, ...]:
    """generation_config.json's, which chat models extend, else config.json's."""
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id", [])
    ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            limit = f"token ids are 0 to {vocab_size - 1}"
            raise ConfigError(f"{folder}: eos_token_id = {token_id!r}; {limit}")
    return tuple(ids)


# null counts as absent, as it does for transformers; numbers as text or booleans do not count.


def _size(values: dict[str, Any], key: str, default: int | None = None, where: str = "") -> int:
    value = default if values.get(key) is None else values[key]
    if type(value) is not int or value < 1:
        raise _bad_value(key, value, where, "a whole number of at least 1")
    return value


def _number(values: dict[str, Any], key: str, default: float, where: str = "") -> float:
    value = default if values.get(key) is None else values[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _bad_value(key, value, where, "a number above 0")
    return float(value)


def _flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key) or False
    if value is not True and value is not False:
        raise _bad_value(key, value, "", "true or false")
    return value


def _bad_value(key: str, value: object, where: str, expected: str) -> ConfigError:
    name = f"{where}.{key}" if where else key
    if value is None:
        return ConfigError(f"config.json: {name} is missing; {expected} is expected")
    return ConfigError(f"config.json: {name} = {value!r}; {expected} is expected")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent}: not a checkpoint folder, it has no {path.name}"
        ) from None
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: {exc}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object is expected")
    return content
