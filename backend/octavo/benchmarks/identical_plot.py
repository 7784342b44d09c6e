"""TTFT and end to end of one request and of N, as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from octavo.benchmarks.identical import ROWS, Medians, Settings

_ALONE, _TOGETHER, _TEXT = "#9dbfdd", "#2f6fab", "#444444"
_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # no grid line through a number
_BAR_WIDTH = 0.36
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "ytick.left": False,
    "xtick.bottom": False,
    "legend.frameon": False,
}


def draw(settings: Settings, found: Medians, file: Path) -> None:
    """In the format that the file's name ends in."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = figure.subplots(1, 2)
        _bars(panels[0], settings, found, "ttft", "Time to first token, s")
        _bars(panels[1], settings, found, "e2e", "End to end, s")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(
            f"One request against {settings.num_requests} identical ones at once: "
            f"{Path(settings.model).name}, {settings.prompt_tokens} + {settings.output_tokens} "
            f"tokens, {settings.kv_cache_bytes / 2**20:,.0f} MiB of KV memory",
            fontsize=11,
        )
        figure.savefig(file, dpi=160)


def _bars(axes: Axes, settings: Settings, found: Medians, name: str, title: str) -> None:
    """p50 as bars, the slowest request as a whisker, N / 1 below each pair."""
    counts = (1, settings.num_requests)
    for side, count, color in zip((-1, 1), counts, (_ALONE, _TOGETHER), strict=True):
        places = [x for x, row in enumerate(ROWS) if count in found.get(row, {})]
        figures = [found[ROWS[x]][count] for x in places]
        xs = [x + side * _BAR_WIDTH / 2 for x in places]
        p50s = [figure[f"{name}_p50_s"] for figure in figures]
        tops = [figure[f"{name}_max_s"] for figure in figures]
        label = "1 request" if count == 1 else f"{count} requests: p50, and the slowest"
        axes.bar(xs, p50s, _BAR_WIDTH * 0.94, color=color, label=label)
        slower = [(x, p50, top) for x, p50, top in zip(xs, p50s, tops, strict=True) if top > p50]
        for x, p50, top in slower:
            axes.vlines(x, p50, top, color=_TEXT, linewidth=1)
            axes.scatter(x, top, marker="_", s=60, color=_TEXT, linewidth=1)
        for x, p50, top in zip(xs, p50s, tops, strict=True):
            text = _seconds(p50)
            if _seconds(top) != text:
                text += f"\nmax {_seconds(top)}"
            look: Any = {"ha": "center", "color": _TEXT, "fontsize": 8, "bbox": _PLATE}
            axes.annotate(text, (x, top), xytext=(0, 5), textcoords="offset points", **look)
    axes.set_title(title, loc="left", fontsize=10)
    labels = [_label(row, found, counts, f"{name}_p50_s") for row in ROWS]
    axes.set_xticks(range(len(ROWS)), labels)
    axes.margins(y=0.13)


def _label(row: str, found: Medians, counts: tuple[int, int], figure: str) -> str:
    by_count = found.get(row, {})
    lines = row.replace(", ", "\n") + "\n" * (2 - row.count(", "))  # all as tall as the tallest
    if not set(counts) <= by_count.keys():
        return f"{lines}\nnot measured"
    ratio = by_count[counts[1]][figure] / by_count[1][figure]
    return f"{lines}\n{counts[1]}/1: ×{ratio:.1f}"


def _seconds(value_s: float) -> str:
    return f"{value_s:.2f}" if value_s >= 0.1 else f"{value_s:.3f}"
