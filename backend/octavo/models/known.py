"""Configs of well-known models, by name: what plans need of them, without a download.

known.json has the keys of their config.json that say what they weigh, each with its source.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.models.architecture import ModelConfig
from octavo.models.config_section import read_json
from octavo.models.model_config import model_config

_FILE = Path(__file__).with_name("known.json")


def known_names() -> list[str]:
    return list(_configs())


def find_config(model: str) -> tuple[str, ModelConfig]:
    """Name and config of a well-known model, a checkpoint folder or a config.json.

    Raises ConfigError, which names the file.
    """
    if model in _configs():
        return model, model_config(_configs()[model])
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve().name, _read_config(path / "config.json")
    if path.is_file():
        return path.resolve().parent.name, _read_config(path)
    raise ConfigError(
        f"model = {model!r}: no such folder or config.json, and no model by that name; known: "
        f"{', '.join(known_names())}"
    )


def _read_config(file: Path) -> ModelConfig:
    content = read_json(file)
    try:
        return model_config(content)
    except ConfigError as error:
        # Whatever the file's name, a checkpoint's errors begin with the usual one.
        raise ConfigError(f"{file}: {str(error).removeprefix('config.json: ')}") from None


@cache
def _configs() -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return configs
