"""A Hugging Face config.json, read into what the decoder needs; the rest is refused by name."""

import json
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
    original_max_position: int = 0


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
    architectures = config.get("architectures") or ["none"]
    family = FAMILIES.get(architectures[0])
    if family is None:
        raise UnsupportedModelError("architectures", architectures, ", ".join(FAMILIES))
    try:
        return family(config, folder)
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"{folder / 'config.json'}: {_describe(exc)}") from exc


def _llama(config: dict[str, Any], folder: Path) -> ModelConfig:
    for key, supported in _ONLY.items():
        if config.get(key, supported[0]) not in supported:
            raise UnsupportedModelError(key, config[key], " or ".join(map(repr, supported)))
    heads = int(config["num_attention_heads"])
    return ModelConfig(
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_position=int(config.get("max_position_embeddings", 2048)),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        rope=_rope(config),
        dtype=_dtype(config),
        eos_token_ids=_eos_token_ids(config, folder),
    )


# A family is one mapping from its config to ModelConfig.
FAMILIES: dict[str, Callable[[dict[str, Any], Path], ModelConfig]] = {"LlamaForCausalLM": _llama}

# Keys that change the mathematics, with the values that the decoder computes; the first is
# what an absent key means.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0,),
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
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    scaling = config.get(where) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE_KEYS:
        raise UnsupportedModelError(f"{where}.rope_type", kind, ", ".join(_ROPE_KEYS))
    missing = [key for key in _ROPE_KEYS[kind] if key not in scaling]
    if missing:
        raise ConfigError(f"config.json: {where} of type {kind} lacks {', '.join(missing)}")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        value = scaling["partial_rotary_factor"]
        raise UnsupportedModelError(f"{where}.partial_rotary_factor", value, "1.0")
    return RopeConfig(
        kind=kind,
        theta=float(scaling.get("rope_theta", config.get("rope_theta", 10_000.0))),
        factor=float(scaling.get("factor", 1.0)),
        low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
        high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
        original_max_position=int(scaling.get("original_max_position_embeddings", 0)),
    )


def _dtype(config: dict[str, Any]) -> str:
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise UnsupportedModelError("torch_dtype", dtype, ", ".join(DTYPES))
    return str(dtype)


def _eos_token_ids(config: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """generation_config.json's, which chat models extend, else config.json's."""
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent}: not a checkpoint folder, it has no {path.name}"
        ) from None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object is expected")
    return content


def _describe(exc: Exception) -> str:
    return f"{exc.args[0]} is missing" if isinstance(exc, KeyError) else str(exc)
