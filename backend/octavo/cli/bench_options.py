"""Options that commands of `octavo bench` share: checked before minutes of measuring."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from octavo.config import ByteSize
from octavo.errors import ConfigError

_PICTURES = (".png", ".svg", ".pdf")


def parsed_bytes(text: str | None) -> int | None:
    """Of --kv-memory. Raises ConfigError."""
    if text is None:
        return None
    try:
        return TypeAdapter[int](ByteSize).validate_python(text)
    except ValidationError:
        raise ConfigError(
            f"--kv-memory = {text}: should be a number of bytes above 0, such as 64MiB"
        ) from None


def check_file(option: str, file: Path | None) -> None:
    """Raises ConfigError."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigError(f"{option} = {file}: no folder {file.absolute().parent}")
    if file is not None and file.is_dir():
        raise ConfigError(f"{option} = {file}: is a folder; name a file in it")


def check_apart(files: Mapping[str, Path | None]) -> None:
    """By option; - is stdout. Raises ConfigError for two that would be the same file."""
    seen: dict[Path, str] = {}
    for option, file in files.items():
        if file is None or file == Path("-"):
            continue
        other = seen.setdefault(file.resolve(), option)
        if other != option:
            raise ConfigError(f"{option} = {file}: {other} writes that file; name another")


def check_picture(option: str, file: Path | None) -> None:
    """Raises ConfigError."""
    if file is None:
        return
    check_file(option, file)
    if file.suffix not in _PICTURES:
        raise ConfigError(f"{option} = {file}: should end in {', '.join(_PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"{option} = {file}: matplotlib is not installed; "
            f"{sys.executable} -m pip install 'octavo[plot]', or matplotlib itself"
        )


def split_list(values: Sequence[str] | None) -> list[str]:
    """Of an option that is repeatable and takes several, with commas between."""
    return [part for value in values or () for part in value.replace(",", " ").split()]
