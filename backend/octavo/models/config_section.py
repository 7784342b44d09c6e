"""Typed reading of config.json: what is not as it should be is refused by key and value."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError, UnsupportedModelError

LARGEST_SIZE = 2**31 - 1
LARGEST_NUMBER = sys.float_info.max  # a JSON number may have more digits than a float holds


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """One object of config.json; `where` is its key, empty for the whole file.

    null counts as absent, as it does for transformers, but for the `optional_` readers. Numbers
    as text or booleans do not count.
    """

    values: Mapping[str, Any]
    where: str = ""

    def path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def with_defaults(self, **defaults: object) -> "ConfigSection":
        """The same, with `defaults` for the keys that are absent."""
        given = {key: value for key, value in self.values.items() if value is not None}
        return replace(self, values={**self.values, **defaults, **given})

    def overridden(self, **values: object) -> "ConfigSection":
        """The same, with `values` in place of the file's."""
        return replace(self, values={**self.values, **values})

    def section(self, key: str, objects: tuple[str, ...] = ()) -> "ConfigSection":
        """The object under `key`, empty if it is absent: a flat one, or one of `objects`."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise UnsupportedModelError(self.path(key), value, "an object")
        nested = {name for name, inner in value.items() if isinstance(inner, dict)}
        if objects and not {*value} <= {*objects}:
            supported = "an object for each of " + ", ".join(objects)
            raise UnsupportedModelError(self.path(key), value, supported)
        if nested and not objects:
            raise UnsupportedModelError(self.path(key), value, "one object for all layers")
        return ConfigSection(value, self.path(key))

    def only(self, key: str, *supported: object) -> None:
        """Refuses all but `supported`, of which the first is what an absent key means."""
        value = self.values.get(key, supported[0])
        if value not in supported:
            shown = " or ".join(map(repr, supported))
            raise UnsupportedModelError(self.path(key), value, shown)

    def size(self, key: str, default: int | None = None) -> int:
        value = default if self.values.get(key) is None else self.values[key]
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
            raise self._bad(key, value, f"a whole number from 1 to {LARGEST_SIZE}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = default if self.values.get(key) is None else self.values[key]
        if type(value) is not int or not 0 <= value <= LARGEST_SIZE:
            raise self._bad(key, value, f"a whole number from 0 to {LARGEST_SIZE}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value: Any = default if self.values.get(key) is None else self.values[key]
        if type(value) not in (int, float) or not 0 < value <= LARGEST_NUMBER:
            raise self._bad(key, value, "a number above 0")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        value = self.values.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(type(v) in (int, float) and 0 < v <= LARGEST_NUMBER for v in value)
        ):
            raise self._bad(key, value, f"a list of {count} numbers above 0")
        return tuple(map(float, value))

    def flag(self, key: str, default: bool = False) -> bool:
        value = default if self.values.get(key) is None else self.values[key]
        if value is not True and value is not False:
            raise self._bad(key, value, "true or false")
        return value

    def optional_size(self, key: str, default: int | None = None) -> int | None:
        """None if the file says null, the default if it says nothing."""
        return None if self.values.get(key, default) is None else self.size(key, default)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """None if the file says null, the default if it says nothing."""
        return None if self.values.get(key, default) is None else self.number(key, default)

    def _bad(self, key: str, value: object, expected: str) -> ConfigError:
        name = self.path(key)
        if value is None:
            return ConfigError(f"config.json: {name} is missing; {expected} is expected")
        return ConfigError(f"config.json: {name} = {value!r}; {expected} is expected")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint folder. Raises ConfigError."""
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
