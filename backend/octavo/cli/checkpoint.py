"""MODEL on the command line: a checkpoint folder, or the id of one on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from octavo.errors import OctavoError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_WANTED_FILES = ("*.safetensors", "*.json", "*.jinja")
_UNWANTED_FILES = ("consolidated*", "original/*", "onnx/*")  # the same weights once more


class CheckpointError(OctavoError):
    """MODEL names nothing that can be served."""


def resolve(model: str) -> Path:
    """The checkpoint folder, fetched from the hub if need be. Raises CheckpointError."""
    path = Path(model).expanduser()
    if path.exists():
        return _check_folder(path.resolve())
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"model {model}: no such folder")
    return _check_folder(_fetch(model))


def _check_folder(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"model {path}: not a folder with config.json and *.safetensors")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"model {path}: holds no config.json")
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(f"model {path}: holds no *.safetensors")
    return path


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=list(_WANTED_FILES),
                ignore_patterns=list(_UNWANTED_FILES),
            )
        )
    except Exception as error:  # the hub's client lets those of its HTTP library through
        cause = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"model {hub_id}: no such folder here, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {cause[0][:160]})"
        ) from None
