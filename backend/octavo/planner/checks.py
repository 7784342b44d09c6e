"""Numbers that an operator gives: refused by field, value and limit."""

from __future__ import annotations

import math

from octavo.errors import ConfigError


def number(
    field: str, value: object, *, least: float = 0.0, most: float = math.inf, above: bool = False
) -> float:
    """`value` as a finite number from `least` (or `above` it) to `most`. Raises ConfigError."""
    low = f"above {least:g}" if above else f"{least:g} or more"
    limit = low if math.isinf(most) else f"{low}, at most {most:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{field} = {value!r}: a number is expected, {limit}")
    if not math.isfinite(value) or value < least or value > most or (above and value == least):
        raise ConfigError(f"{field} = {value!r}: a finite number is expected, {limit}")
    return float(value)
