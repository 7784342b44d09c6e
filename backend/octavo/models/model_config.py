"""A Hugging Face config.json, read into what the decoder needs; the rest is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models.architecture import ModelConfig
from octavo.models.config_section import ConfigSection, read_json
from octavo.models.families import FAMILIES
from octavo.models.stored_format import read_stored_format

__all__ = ["ModelConfig", "model_config", "read_model_config"]


def read_model_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder.

    Raises ConfigError if it cannot be read, UnsupportedModelError (naming key and value) if the
    decoder cannot compute it.
    """
    config = read_json(folder / "config.json")
    model = model_config(config)
    return replace(model, eos_token_ids=_eos_token_ids(config, folder, model.vocab_size))


def model_config(config: dict[str, Any]) -> ModelConfig:
    """Of the content of a config.json, all but the ids of ends. Raises as `read_model_config`."""
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModelError("architectures", architectures, ", ".join(FAMILIES))
    section = ConfigSection(config)
    return replace(family(section), stored_format=read_stored_format(section))


def _eos_token_ids(config: dict[str, Any], folder: Path, vocab_size: int) -> tuple[int, ...]:
    """generation_config.json's, which chat models extend, else config.json's."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id", [])
    ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            limit = f"token ids are 0 to {vocab_size - 1}"
            raise ConfigError(f"{folder}: eos_token_id = {token_id!r}; {limit}")
    return tuple(ids)
