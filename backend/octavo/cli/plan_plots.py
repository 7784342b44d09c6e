"""Contracts as pictures: dollars a month, dollars by volume, what a swing of a fifth does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from octavo.cli.plan_contracts import Compared
from octavo.cli.plan_output import usd
from octavo.planner.comparison import SWING
from octavo.planner.cost import MONTH_HOURS

_COLORS = {
    "on demand": "#2f6fab", "reserved": "#6a9a3b", "on premise": "#8d6bb1",
    "hybrid": "#d08a2e", "token API": "#c0504d",
}  # fmt: skip
_TEXT = "#444444"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}


def draw(compared: Compared, file: Path) -> None:
    """All three, in the format that the file's name ends in."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 8), layout="constrained")
        panels = figure.subplot_mosaic([["bars", "scale"], ["swings", "swings"]])
        _bars(panels["bars"], compared)
        _by_scale(panels["scale"], compared)
        _swings(panels["swings"], compared)
        figure.savefig(file, dpi=150)


def svgs(compared: Compared) -> dict[str, str]:
    """Each of them, to be put into a page."""
    found = {}
    for name, panel, height in (("bars", _bars, 3.0), ("scale", _by_scale, 4.2),
                                ("swings", _swings, 3.4)):  # fmt: skip
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(7.4, height), layout="constrained")
            panel(figure.subplots(), compared)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        text = buffer.getvalue()
        found[name] = text[text.index("<svg") :]
    return found


def _bars(axes: Axes, compared: Compared) -> None:
    """The month, and the worst one as a thin line behind it."""
    names = [each.name for each in reversed(compared.found)]
    values = [each.usd_per_month for each in reversed(compared.found)]
    worst = [compared.worst[name] for name in names]
    colors = [_COLORS[name] for name in names]
    axes.barh(names, worst, height=0.12, color=colors, alpha=0.45)
    axes.barh(names, values, height=0.55, color=colors)
    for place, (value, far) in enumerate(zip(values, worst, strict=True)):
        axes.annotate(usd(value), (max(value, far), place), xytext=(5, 0), va="center",
                      textcoords="offset points", color=_TEXT)  # fmt: skip
    axes.set_xlim(0, 1.18 * max(*worst, *values) or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_title("Dollars a month; thin: the worst month")
    axes.grid(axis="x")


def _by_scale(axes: Axes, compared: Compared) -> None:
    total = compared.traffic.total.output_tokens * MONTH_HOURS / compared.traffic.hours / 1e6
    tokens = [scale * total for scale, _ in compared.by_scale]
    for each in compared.found:
        costs = [found[each.name] for _, found in compared.by_scale]
        axes.plot(tokens, costs, color=_COLORS[each.name], label=each.name, linewidth=2)
    axes.axvline(total, color="#888888", linestyle=":", linewidth=1)
    axes.annotate("this traffic", (total, 0.02), xycoords=("data", "axes fraction"),
                  xytext=(4, 0), textcoords="offset points", color=_TEXT)  # fmt: skip
    axes.set_xscale("log")
    if any(usd > 0 for _, found in compared.by_scale for usd in found.values()):
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("million output tokens a month, at the same shape")
    axes.set_title("Dollars a month by volume")
    axes.grid(which="major")
    axes.legend()


def _swings(axes: Axes, compared: Compared) -> None:
    """How far the cheapest contract's dollars move; its name where another one is the cheapest."""
    first = compared.found[0]
    here = first.usd_per_month
    ends = [
        (swing.figure, [_cheapest(swing.lower), _cheapest(swing.higher)])
        for swing in compared.swings
    ]
    ends.sort(key=lambda each: abs(each[1][1][0] - each[1][0][0]))
    for place, (_, ((low, low_name), (high, high_name))) in enumerate(ends):
        for value, name, sign, alpha in ((low, low_name, "−", 0.55), (high, high_name, "+", 1.0)):
            moved = value - here
            if not moved:
                continue
            axes.barh(place, moved, left=here, height=0.5, color=_COLORS[name], alpha=alpha)
            other = "" if name == first.name else f" {name}"
            axes.annotate(f"{sign}{SWING:.0%}{other}", (value, place),
                          xytext=(4 if moved > 0 else -4, 0), textcoords="offset points",
                          ha="left" if moved > 0 else "right", va="center", color=_TEXT,
                          fontsize=9)  # fmt: skip
    axes.axvline(here, color="#888888", linewidth=1)
    axes.set_yticks(range(len(ends)), [figure for figure, _ in ends])
    axes.set_ylim(-0.6, len(ends) - 0.4)
    axes.margins(x=0.16)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_title(f"The cheapest contract's dollars a month if one figure moves by {SWING:.0%}")


def _cheapest(found: dict[str, float]) -> tuple[float, str]:
    """The first one of several."""
    name = min(found, key=lambda each: found[each])
    return found[name], name


def _short(value: float, _: object) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"${value / unit:,.3g}{name}"
    return f"${value:,.3g}"
