"""A profile as one page that needs nothing from elsewhere: tables, and the roofline as SVG."""

from __future__ import annotations

import math
from pathlib import Path
from xml.sax.saxutils import escape

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from octavo.benchmarks.profile import DEFINITIONS, Result
from octavo.benchmarks.profile_words import (
    COLORS,
    OPERATION_HEADINGS,
    gap_rows,
    gap_sentence,
    headline,
    operation_rows,
    peaks_line,
    percent,
    title,
)
from octavo.planner.operations import MEANINGS

_WIDTH, _HEIGHT = 480, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 26, 38


def page(result: Result) -> str:
    """HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    phases = [
        {
            "headline": headline(result, name),
            "plot": roofline_svg(result, name),
            "operations": operation_rows(phase),
            "gaps": gap_rows(phase),
            "bars": _bars(phase),
            "sentence": gap_sentence(phase),
            "name": name,
        }
        for name, phase in result["phases"].items()
    ]
    return environment.get_template("profile.html").render(
        result=result,
        title=title(result),
        peaks=peaks_line(result),
        headings=[heading.replace("/\n", "/").replace("\n", " ") for heading in OPERATION_HEADINGS],
        phases=phases,
        definitions=DEFINITIONS,
        meanings=MEANINGS,
        colors=COLORS,
    )


def _bars(phase: Result) -> list[tuple[str, str, float]]:
    """Of the step's parts above 0: name, share in words, and in percent of their sum."""
    parts = {name: max(each, 0.0) for name, each in phase["gaps_s"].items() if name != "recording"}
    whole = sum(parts.values())
    return [
        (name, percent(each / phase["time_s"]), 100 * each / whole)
        for name, each in parts.items()
        if each > 0
    ]


class _Scale:
    """Two logarithmic axes, between powers of ten."""

    def __init__(self, xs: list[float], ys: list[float]) -> None:
        self.left, self.right = math.floor(_log(min(xs))), math.ceil(_log(max(xs)))
        self.low, self.high = math.floor(_log(min(ys))), math.ceil(_log(max(ys)))

    def x(self, value: float) -> float:
        share = (_log(value) - self.left) / (self.right - self.left)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (_log(value) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _log(value: float) -> float:
    return math.log10(value)


def roofline_svg(result: Result, name: str) -> Markup:
    """The roof of each format in use, and a circle for each operation that computes; its area is
    the share of the step's time."""
    phase, read = result["phases"][name], result["peaks"]["read_bytes_per_s"]
    placed = [row for row in phase["operations"] if row.get("flops")]
    rates = {
        kind: result["peaks"]["flops_per_s"][kind]
        for kind in sorted({row["kind"] for row in placed})
    }
    xs = [row["flops"] / row["bytes"] for row in placed if row["bytes"]]
    ridges = [rate / read for rate in rates.values()]
    scale = _Scale(
        [min(xs) / 2, 2 * max(*xs, *ridges)],
        [min(row["flops_per_s"] for row in placed) / 2, 1.5 * max(rates.values())],
    )
    marks = [f"<title>{escape(f'Roofline of {name}')}</title>", *_grid(scale)]
    for kind, rate in rates.items():
        marks += _roof(scale, kind, rate, read)
    marks.append(
        _text(scale.x(10**scale.left) + 6, _HEIGHT - _BOTTOM - 8,
              f"slope: read {read / 1e9:,.1f} GB/s", "start")
    )  # fmt: skip
    for row in sorted(placed, key=lambda row: -row["step_ratio"]):
        # What moves no bytes stands at the right edge.
        x = scale.x(row["flops"] / row["bytes"]) if row["bytes"] else _WIDTH - _RIGHT - 6
        y = scale.y(row["flops_per_s"])
        words = (
            f"{row['operation']}: {row['flops_per_s'] / 1e9:,.1f} GFLOP/s, "
            f"{percent(row['step_ratio'])} % of the step, "
            f"{percent(row['roof_ratio'])} % of its roof"
        )
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 16 * math.sqrt(row["step_ratio"]):.1f}" '
            f'fill="{COLORS[row["operation"]]}"><title>{escape(words)}</title></circle>'
        )
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{chr(10).join(marks)}</svg>')


def _grid(scale: _Scale) -> list[str]:
    marks = []
    for power in range(scale.left, scale.right + 1):
        x = scale.x(10.0**power)
        marks.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
        marks.append(_text(x, _HEIGHT - _BOTTOM + 14, _power(power), "middle"))
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        marks.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        marks.append(_text(_LEFT - 5, y + 4, _power(power - 9), "end"))
    marks.append(_text((_WIDTH + _LEFT) / 2, _HEIGHT - 5, "FLOPs for each byte", "middle"))
    marks.append(_text(2, 10, "GFLOP/s", "start"))
    return marks


def _roof(scale: _Scale, kind: str, rate: float, read: float) -> list[str]:
    """From where it leaves the panel at the left or below, to the ridge and along the top."""
    left = max(10.0**scale.left, 10.0**scale.low / read)
    ridge, right = rate / read, 10.0**scale.right
    points = " ".join(
        f"{scale.x(x):.1f},{scale.y(min(x * read, rate)):.1f}" for x in (left, ridge, right)
    )
    return [
        f'<polyline class="roof" points="{points}"/>',
        _text(_WIDTH - _RIGHT, scale.y(rate) - 5, f"{kind} {rate / 1e9:,.0f}", "end"),
    ]


def _power(power: int) -> str:
    return f"{10.0**power:g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
