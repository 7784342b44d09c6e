"""Writes the table of docs/metrics.md from the exporter's own list: `python docs/generate.py`."""

from __future__ import annotations

from pathlib import Path

from octavo.serving.metric_table import METRICS, Metric

PAGE = Path(__file__).with_name("metrics.md")
BEGIN, END = "<!-- generated -->", "<!-- end -->"


def table() -> str:
    rows = [f"| `{_shown(metric)}` | {metric.kind} | {metric.help} |" for metric in METRICS]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows])


def rendered(page: str) -> str:
    """The page with its table renewed."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _shown(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    return metric.name + labels


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
