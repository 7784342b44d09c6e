"""Prices of machines and of token-based APIs: prices.toml, and an operator's file over it.

No price is invented: what is not in a file has to be given. An old one is flagged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.planner.checks import number
from octavo.planner.hardware import Machine, machines_with
from octavo.planner.tables import entry, own_table, read_table

MAX_AGE_DAYS = 90
_MACHINE_FIELDS = (
    "usd_per_hour", "spot_usd_per_hour", "reserved_usd_per_hour", "region", "as_of", "source",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quote:
    """Where a price is from, and of when."""

    name: str
    as_of: date
    source: str
    region: str

    def age_days(self, today: date) -> int:
        return (today - self.as_of).days

    def is_stale(self, today: date) -> bool:
        return self.age_days(today) > MAX_AGE_DAYS


def stale_notes(quotes: Iterable[Quote], today: date) -> list[str]:
    """What to say wherever prices are used that are old: a sentence for each source and date."""
    names: dict[tuple[date, str], list[str]] = {}
    for quote in quotes:
        if quote.is_stale(today):
            names.setdefault((quote.as_of, quote.source), []).append(quote.name)
    return [
        f"old price: {', '.join(dict.fromkeys(named))} of {as_of}, {(today - as_of).days} days ago "
        f"(more than {MAX_AGE_DAYS}); check {source}"
        for (as_of, source), named in names.items()
    ]


@dataclass(frozen=True, slots=True)
class MachinePrice:
    """spot_usd_per_hour: the lowest and the highest seen
    reserved_usd_per_hour: of an operator's file only"""

    quote: Quote
    usd_per_hour: float
    spot_usd_per_hour: tuple[float, float] | None = None
    reserved_usd_per_hour: float | None = None

    def share(self, count: int) -> MachinePrice:
        """Of one of `count` accelerators."""
        spot, reserved = self.spot_usd_per_hour, self.reserved_usd_per_hour
        return MachinePrice(
            self.quote,
            self.usd_per_hour / count,
            None if spot is None else (spot[0] / count, spot[1] / count),
            None if reserved is None else reserved / count,
        )


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """max_input_tokens, max_output_tokens: of a request; None: no limit is known"""

    quote: Quote
    input_cost_per_token: float
    output_cost_per_token: float
    cache_read_input_token_cost: float | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None

    def check_serves(self, prompt_tokens: int, output_tokens: int) -> None:
        """Raises ConfigError for a request that the API does not take."""
        for what, tokens, key, most in (
            ("a prompt", prompt_tokens, "max_input_tokens", self.max_input_tokens),
            ("an answer", output_tokens, "max_output_tokens", self.max_output_tokens),
        ):
            if most is not None and tokens > most:
                raise ConfigError(
                    f"--api = {self.quote.name}: {what} of {tokens} tokens is more than its "
                    f"{key} = {most}"
                )

    def other_model_note(self, model: str) -> str | None:
        """None if the names say that it serves `model`, in whatever variant."""
        own, served = (
            "".join(filter(str.isalnum, name.lower()))
            for name in (model, self.quote.name.rpartition("/")[2])
        )
        if served.startswith(own):
            return None
        return (
            f"by its name, the API {self.quote.name} serves another model than {model}: they are "
            "compared in dollars alone"
        )


@dataclass(frozen=True, slots=True)
class Prices:
    machines: Mapping[str, MachinePrice]
    models: Mapping[str, TokenPrice]

    def of(self, name: str) -> MachinePrice | None:
        """Of an instance or, by its share, of an accelerator; None: none is known."""
        if name in self.machines:
            return self.machines[name]
        holder = self.holder(name)
        return None if holder is None else self.machines[holder.name].share(holder.count)

    def holder(self, accelerator: str) -> Machine | None:
        """The smallest instance with it that has a price."""
        priced = (each for each in machines_with(accelerator) if each.name in self.machines)
        return next(priced, None)

    def machine(self, name: str) -> MachinePrice:
        """Raises ConfigError."""
        found: MachinePrice = entry(dict(self.machines), name, "price of machine")
        return found

    def model(self, name: str) -> TokenPrice:
        """Raises ConfigError."""
        found: TokenPrice = entry(dict(self.models), name, "price of API model")
        return found


def load_prices(path: Path | None = None) -> Prices:
    """The project's, with those of `path` in place of the ones that it names too.

    Raises ConfigError naming file, field, value and limit.
    """
    own = _own()
    if path is None:
        return own
    given = _read(read_table(path), str(path))
    for kind, rows in (("machines", given.machines), ("models", given.models)):
        for name, price in rows.items():
            _check_not_future(price.quote, f"{path}: {kind}.{name}")
    return Prices({**own.machines, **given.machines}, {**own.models, **given.models})


def _check_not_future(quote: Quote, field: str) -> None:
    """Of an operator's file: the project's is right where the clock is wrong."""
    today = date.today()
    if quote.as_of > today:
        raise ConfigError(
            f"{field}.as_of = {quote.as_of}: a date up to today, {today}, is expected: it is of "
            "when the price was seen"
        )


@cache
def _own() -> Prices:
    return _read(own_table("prices.toml"), "prices.toml")


def _read(table: dict[str, Any], where: str) -> Prices:
    unknown = set(table) - {"machines", "models"}
    if unknown:
        raise ConfigError(f"{where}: {', '.join(sorted(unknown))}: tables are machines and models")
    return Prices(
        {name: _machine(name, row, where) for name, row in _rows(table, "machines", where)},
        {name: _model(name, row, where) for name, row in _rows(table, "models", where)},
    )


def _rows(table: dict[str, Any], kind: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    rows = table.get(kind, {})
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ConfigError(f"{where}: {kind} should be tables [{kind}.NAME]")
    return list(rows.items())


def _machine(name: str, row: dict[str, Any], where: str) -> MachinePrice:
    field = f"{where}: machines.{name}"
    for key in row:
        if key not in _MACHINE_FIELDS:
            near = get_close_matches(key, _MACHINE_FIELDS, n=1)
            known = f"did you mean {near[0]}?" if near else f"fields: {', '.join(_MACHINE_FIELDS)}"
            raise ConfigError(f"{field}.{key} = {row[key]!r}: no such field; {known}")
    spot = row.get("spot_usd_per_hour")
    if spot is not None and (not isinstance(spot, list) or len(spot) != 2):
        raise ConfigError(f"{field}.spot_usd_per_hour = {spot!r}: [lowest, highest] is expected")
    reserved = row.get("reserved_usd_per_hour")
    return MachinePrice(
        quote=_quote(name, row, field),
        usd_per_hour=_price(row, field, "usd_per_hour"),
        spot_usd_per_hour=None if spot is None else _spot(spot, field),
        reserved_usd_per_hour=None
        if reserved is None
        else _price(row, field, "reserved_usd_per_hour"),
    )


def _spot(spot: list[object], field: str) -> tuple[float, float]:
    low, high = (number(f"{field}.spot_usd_per_hour", each) for each in spot)
    if low > high:
        raise ConfigError(f"{field}.spot_usd_per_hour = {spot!r}: the lowest comes first")
    return low, high


def _model(name: str, row: dict[str, Any], where: str) -> TokenPrice:
    # LiteLLM's entries have many more fields: they may be copied whole.
    field = f"{where}: models.{name}"
    cached = "cache_read_input_token_cost"
    return TokenPrice(
        quote=_quote(name, row, field),
        input_cost_per_token=_price(row, field, "input_cost_per_token"),
        output_cost_per_token=_price(row, field, "output_cost_per_token"),
        cache_read_input_token_cost=_price(row, field, cached) if cached in row else None,
        max_input_tokens=_tokens(row, field, "max_input_tokens"),
        max_output_tokens=_tokens(row, field, "max_output_tokens"),
    )


def _tokens(row: dict[str, Any], field: str, key: str) -> int | None:
    return int(number(f"{field}.{key}", row[key], least=1)) if key in row else None


def _price(row: dict[str, Any], field: str, key: str) -> float:
    if key not in row:
        raise ConfigError(f"{field}.{key} is missing; dollars are expected, 0 or more")
    return number(f"{field}.{key}", row[key])


def _quote(name: str, row: dict[str, Any], field: str) -> Quote:
    as_of = row.get("as_of")
    # A datetime is a date too, and does not compare with one.
    if type(as_of) is not date:
        raise ConfigError(f"{field}.as_of = {as_of!r}: a date is expected, such as 2026-11-01")
    for key in ("source", "region"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise ConfigError(f"{field}.{key} = {row.get(key)!r}: text is expected")
    return Quote(name, as_of, row["source"], row["region"])
