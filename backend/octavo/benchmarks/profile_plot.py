"""The roofline: a panel for each phase, a mark for each operation under the roof of its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from octavo.benchmarks.profile import Result
from octavo.benchmarks.profile_words import COLORS, headline, percent, title

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def draw(result: Result, file: Path) -> None:
    """In the format that the file's name ends in."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 6.4), layout="constrained")
        figure.suptitle(title(result), x=0.01, ha="left", fontsize=10)
        for axes, name in zip(figure.subplots(1, 2, sharey=True), result["phases"], strict=True):
            _panel(axes, result, name)
        figure.savefig(file, dpi=130)


def _panel(axes: Axes, result: Result, name: str) -> None:
    phase, read = result["phases"][name], result["peaks"]["read_bytes_per_s"]
    placed = [row for row in phase["operations"] if row.get("flops")]
    intensities = [row["flops"] / row["bytes"] for row in placed if row["bytes"]]
    used = {row["kind"] for row in placed}
    rates = {kind: result["peaks"]["flops_per_s"][kind] for kind in sorted(used)}
    right = 4 * max(*intensities, *(rate / read for rate in rates.values()))
    left = min(intensities) / 4
    for kind, rate in rates.items():
        x = np.geomspace(left, right, 200)
        axes.plot(x, np.minimum(x * read, rate) / 1e9, color="#222222", linewidth=1.2)
        axes.annotate(
            f"{kind}, {rate / 1e9:,.0f} GFLOP/s", (right, rate / 1e9), (0, 4),
            textcoords="offset points", ha="right",
        )  # fmt: skip
    axes.annotate(
        f"read {read / 1e9:,.1f} GB/s", (2 * left, 2 * left * read / 1e9), (8, -12),
        textcoords="offset points", ha="left",
    )  # fmt: skip
    for row in placed:
        area = 30 + 900 * row["step_ratio"]
        # What moves no bytes stands at the right edge.
        x = row["flops"] / row["bytes"] if row["bytes"] else right / 1.2
        axes.scatter(
            x, row["flops_per_s"] / 1e9, s=area, alpha=0.75,
            color=COLORS[row["operation"]], edgecolor="white", zorder=3,
            label=f"{row['operation']}: {percent(row['step_ratio'])} % of the time, "
            f"{percent(row['roof_ratio'])} % of its roof",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOPs for each byte", xlim=(left, right))
    axes.set_title(headline(result, name).replace("; ", "\n"), loc="left", fontsize=9)
    axes.set_ylabel("GFLOP/s")
    legend = axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
