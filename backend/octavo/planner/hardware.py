"""The catalog of accelerators, hosts and machines to rent: hardware.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from octavo.errors import ConfigError
from octavo.planner.checks import number
from octavo.planner.tables import own_table


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What one engine computes on: a GPU, or a host's processors.

    flops_per_s: by the type of what is multiplied
    sources: of each figure
    """

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    memory_bytes: int
    read_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    power_w: float | None
    sources: Mapping[str, str]

    def peak_flops_per_s(self, activation: str) -> float:
        """Raises ConfigError for a type that the catalog has no peak of."""
        if activation not in self.flops_per_s:
            known = ", ".join(self.flops_per_s)
            raise ConfigError(
                f"hardware {self.name}: no peak for {activation} is known; known: {known}"
            )
        return self.flops_per_s[activation]


@dataclass(frozen=True, slots=True)
class Machine:
    """What is rented or bought as a whole: `count` accelerators, an engine on each."""

    name: str
    accelerator: Accelerator
    count: int


def find_machine(name: str) -> Machine:
    """An instance by its name, or one accelerator by its own. Raises ConfigError."""
    table = _table()
    instances, accelerators = table["instances"], table["accelerators"]
    if name in instances:
        row = instances[name]
        return Machine(name, _accelerator(row["accelerator"]), row["count"])
    if name in accelerators:
        return Machine(name, _accelerator(name), 1)
    raise ConfigError(
        f"hardware = {name!r}: known are {', '.join(accelerators)}, and the instances "
        f"{', '.join(instances)}"
    )


def machines_with(accelerator: str) -> list[Machine]:
    """Instances that have it, the smallest first."""
    found = [
        find_machine(name)
        for name, row in _table()["instances"].items()
        if row["accelerator"] == accelerator
    ]
    return sorted(found, key=lambda machine: machine.count)


def accelerator_names() -> list[str]:
    return list(_table()["accelerators"])


def instance_names() -> list[str]:
    return list(_table()["instances"])


@cache
def _table() -> dict[str, Any]:
    return own_table("hardware.toml")


def _accelerator(name: str) -> Accelerator:
    table = _table()
    row, urls = table["accelerators"][name], table["sources"]
    figures = ("memory_bytes", "read_bytes_per_s", "flops_per_s", "power_w")
    given = {figure: row[figure] for figure in figures if figure in row}

    def value(figure: str) -> float:
        return number(f"hardware.toml: {name}.{figure}", row[figure]["value"], above=True)

    return Accelerator(
        name=name,
        title=row["title"],
        kind=row["kind"],
        memory_bytes=int(value("memory_bytes")),
        read_bytes_per_s=value("read_bytes_per_s"),
        flops_per_s={
            kind: number(f"hardware.toml: {name}.flops_per_s.{kind}", flops, above=True)
            for kind, flops in row["flops_per_s"].items()
            if kind != "source"
        },
        power_w=value("power_w") if "power_w" in row else None,
        sources={figure: urls[own["source"]] for figure, own in given.items()},
    )
