"""What dashboards are made of, and the queries that many panels share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CHOSEN = 'model=~"$model",instance=~"$instance"'
# Requests of the unary model run in the same engine, and wait in a queue of its own.
CHOSEN_QUEUES = 'model=~"($model)(_unary)?",instance=~"$instance"'
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Ids stay as they are, since links and alerts name them; a new panel gets the next one, over
    all dashboards."""

    id: int
    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"  # a unit id of Grafana's
    kind: Literal["stat", "timeseries"] = "timeseries"
    stacked: bool = False
    minimum: float | None = 0
    maximum: float | None = None
    thresholds: tuple[tuple[str, float | None], ...] = field(default=(("green", None),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    uid: str  # also the name of its file
    title: str
    rows: dict[str, tuple[Panel, ...]]
    span: str = "30m"


def gauge(name: str) -> str:
    return f"{name}{{{CHOSEN}}}"


def recorded(name: str, where: str = "") -> str:
    """A series of recording.yml: of a model, all its servers together."""
    return f'{name}{{model=~"$model"{where}}}'


def rate(name: str, by: str = "", where: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({name}{{{CHOSEN}{where}}}[$__rate_interval]))"


def share(name: str, by: str) -> str:
    return f"{rate(name, by)} / ignoring({by}) group_left {rate(name)}"


def quantile(q: float, name: str) -> str:
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', 'le')})"


def quantiles(name: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, name), f"p{100 * q:g}") for q in _QUANTILES)
