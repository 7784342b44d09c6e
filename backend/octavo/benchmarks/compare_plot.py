"""Engines side by side: three panels for each model, a mark for each engine and workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from octavo.benchmarks.compare import MEASURES, OURS, Comparison, Engine, Measure

_OURS = "#1f5fa8"
_PEERS = ("#d1661b", "#3f9142", "#8e5bb5", "#555555", "#b03a48", "#b8860b", "#4f8f8f")
_LIGHTER = {4: 0.55, 8: 0.3}  # of the colour of 16 bits, by weight bits
_MARKS = {4: "^", 8: "s", 16: "o", 32: "D"}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
Colors = dict[Engine, tuple[float, float, float]]


def draw(comparisons: list[Comparison], file: Path) -> None:
    """In the format that the file's name ends in."""
    engines = sorted(
        {engine for comparison in comparisons for engine in comparison.engines},
        key=lambda engine: (engine.peer != OURS, engine),
    )
    colors = _colors(engines)
    marks = [Line2D([], [], label=str(each), **_look(each, colors)) for each in engines]
    panels = [(comparison, measure) for comparison in comparisons for measure in MEASURES]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 0.9 + 3.3 * len(panels)), layout="constrained")
        rows = figure.subplots(len(panels), 1, squeeze=False).flat
        for axes, (comparison, measure) in zip(rows, panels, strict=True):
            _panel(axes, comparison, measure, colors)
        figure.legend(handles=marks, loc="outside upper center", ncols=min(6, len(marks)))
        figure.savefig(file, dpi=130)


def _colors(engines: list[Engine]) -> Colors:
    """A hue for each engine, lighter for fewer bits."""
    peers = list(dict.fromkeys(engine.peer for engine in engines if engine.peer != OURS))
    hues = {OURS: _OURS, **{peer: _PEERS[i % len(_PEERS)] for i, peer in enumerate(peers)}}

    def shade(engine: Engine) -> tuple[float, float, float]:
        share = _LIGHTER.get(engine.bits, 0.0)
        red, green, blue = (part + (1 - part) * share for part in to_rgb(hues[engine.peer]))
        return red, green, blue

    return {engine: shade(engine) for engine in engines}


def _look(engine: Engine, colors: Colors) -> dict[str, Any]:
    is_ours = engine.peer == OURS
    return {
        "linestyle": "",
        "color": colors[engine],
        "marker": _MARKS.get(engine.bits, "o"),
        "markersize": 9 if is_ours else 6.5,
        "markeredgecolor": "black" if is_ours else "none",
        "zorder": 3 if is_ours else 2,
    }


def _panel(axes: Axes, comparison: Comparison, measure: Measure, colors: Colors) -> None:
    engines = comparison.engines
    for place, engine in enumerate(engines):
        shift = (place - (len(engines) - 1) / 2) * 0.8 / len(engines)
        points = [
            (x + shift, by_engine[engine][measure.field])
            for x, by_engine in enumerate(comparison.results.values())
            if measure.field in by_engine.get(engine, {})
        ]
        if points:
            axes.plot(*zip(*points, strict=True), **_look(engine, colors))
    # Names as long as that of a shared prefix take two lines.
    names = [name.replace("-", "\n", 1) if len(name) > 14 else name for name in comparison.results]
    for edge in range(1, len(names)):
        axes.axvline(edge - 0.5, color="#d0d0d0", linewidth=0.8)
    better = "higher" if measure.higher_is_better else "lower"
    axes.set_title(f"{comparison.model}: {measure.title} ({better} is better)", loc="left")
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
