"""config.json files for tests of what is read from them and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories import TOY_CONFIG
from octavo.errors import ConfigError
from octavo.models.model_config import ModelConfig, read_model_config

ABSENT = object()


def read(folder: Path, **overrides: Any) -> ModelConfig:
    """What is read from the toy's config.json with `overrides`; ABSENT takes a key out."""
    config = {k: v for k, v in {**TOY_CONFIG, **overrides}.items() if v is not ABSENT}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_model_config(folder)


def assert_refused(folder: Path, *parts: str, **overrides: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read(folder, **overrides)
    message = str(caught.value)
    assert all(part in message for part in parts), message
