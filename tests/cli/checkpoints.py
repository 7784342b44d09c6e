from __future__ import annotations

from pathlib import Path


def write_empty_checkpoint(folder: Path) -> Path:
    """A folder that the launcher takes for a checkpoint; no engine could load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder
