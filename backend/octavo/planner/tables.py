"""Reads the planner's tables: its own in this folder, and an operator's of the same form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HERE = Path(__file__).parent


def own_table(name: str) -> dict[str, Any]:
    return read_table(_HERE / name)


def read_table(path: Path) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from None
    return table


def entry(table: dict[str, Any], name: str, kind: str) -> Any:
    """Raises ConfigError naming what there is."""
    if name not in table:
        raise ConfigError(f"{kind} = {name!r}: known are {', '.join(table) or 'none'}")
    return table[name]
