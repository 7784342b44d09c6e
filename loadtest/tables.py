"""The numbers of a run as rows of text: for the terminal and for the HTML report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.summary import Distribution, Run, Summary


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` have as many cells as `columns`; the first is a name, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_STATISTICS = ("mean", "min", "p50", "p90", "p99", "max")
NONE = "–"


def latency_table(summary: Summary) -> Table:
    rows = [_latency_row(name, d) for name, d in summary.latencies.items()]
    if summary.schedule_lag_s is not None:
        rows.append(_latency_row("schedule lag", summary.schedule_lag_s))
    return Table("Latencies, ms", ("", *_STATISTICS, "values"), tuple(rows))


def workload_table(by_workload: Mapping[str, Summary]) -> Table:
    rows = []
    for name, summary in by_workload.items():
        ttft, tpot, e2e = (summary.latencies[key] for key in ("TTFT", "TPOT", "e2e"))
        cells = [
            cell
            for d in (ttft, tpot, e2e)
            for cell in (_ms(d, "p50"), _ms(d, "p99"))
        ]  # fmt: skip
        rows.append((name, f"{summary.counts['ok']:,}", *cells, _share(summary.goodput.ratio)))
    columns = [f"{name} {p}" for name in ("TTFT", "TPOT", "e2e") for p in ("p50", "p99")]
    return Table("By workload, ms", ("", "ok", *columns, "good"), tuple(rows))


def rate_table(summary: Summary) -> Table:
    goodput = summary.goodput
    slo = f"TTFT ≤ {goodput.slo_ttft_s:g} s, TPOT ≤ {goodput.slo_tpot_s:g} s"
    rows = [
        ("duration, s", _number(summary.duration_s)),
        ("requests/s", _number(summary.requests_per_s)),
        ("output tokens/s", _number(summary.output_tokens_per_s)),
        ("input tokens", f"{summary.input_tokens:,}"),
        ("output tokens", f"{summary.output_tokens:,}"),
        ("cached input tokens", NONE if (c := summary.cached_tokens) is None else f"{c:,}"),
        ("tokens per output", _number(summary.tokens_per_output)),
        (
            f"goodput, requests/s ({slo})",
            _number(goodput.requests_per_s),
        ),
        ("good of evaluated", f"{goodput.good:,} of {goodput.evaluated:,}"),
        ("good", _share(goodput.ratio)),
        ("good tokens", f"{goodput.good_tokens:,}"),
    ]
    return Table("Rates and tokens", ("", ""), tuple(rows))


def count_table(summary: Summary) -> Table:
    names = {"cut_off": "cut off by the end"}
    rows = [(names.get(status, status), f"{count:,}") for status, count in summary.counts.items()]
    return Table("Requests", ("", ""), tuple(rows))


def settings_table(title: str, values: Mapping[str, Any]) -> Table:
    rows = ((name, NONE if value is None else str(value)) for name, value in _flat(values))
    return Table(title, ("", ""), tuple(rows))


def headline(run: Run) -> str:
    """The run in a line."""
    settings = run.settings
    load = (
        f"closed loop, {settings['num_users']} users"
        if settings["arrival"] == "closed"
        else f"open loop, {settings['arrival']} arrivals at {settings['rate']:g} requests/s"
    )
    return (
        f"{settings['workload']['name']} over {settings['transport']}, {load}, "
        f"{settings['duration_s']:g} s, seed {settings['workload']['seed']}, "
        f"{run.workers} process{'es' if run.workers > 1 else ''}"
    )


def as_text(run: Run) -> str:
    """What the terminal shows."""
    lines = [headline(run)]
    tables = [count_table(run.total), rate_table(run.total), latency_table(run.total)]
    if len(run.by_workload) > 1:
        tables.append(workload_table(run.by_workload))
    for table in tables:
        lines += ["", table.title, *_aligned(table)]
    lines += ["", f"Definitions (version {run.definition_version})"]
    width = max(map(len, run.definitions))
    lines += [f"  {name:<{width}}  {text}" for name, text in run.definitions.items()]
    lines += ["", *(f"Note: {warning}" for warning in run.validity.warnings)]
    lines += [f"INVALID: {reason}" for reason in run.validity.reasons] or ["The run is valid."]
    return "\n".join(lines)


def _aligned(table: Table) -> Iterable[str]:
    cells = [table.columns, *table.rows] if any(table.columns) else list(table.rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        numbers = (f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        yield "  " + "  ".join([f"{row[0]:<{widths[0]}}", *numbers])


def _latency_row(name: str, distribution: Distribution | None) -> tuple[str, ...]:
    count = f"{distribution.count:,}" if distribution else "0"
    return (name, *(_ms(distribution, statistic) for statistic in _STATISTICS), count)


def _ms(distribution: Distribution | None, statistic: str) -> str:
    if distribution is None:
        return NONE
    mark = "*" if statistic in distribution.too_few else ""
    return f"{getattr(distribution, statistic) * 1e3:,.2f}{mark}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.2f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", v) for inner, v in _flat(value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(map(str, value))
        else:
            yield name, value
