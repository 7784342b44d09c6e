"""Decode steps under the machine's roof, as SVG: before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from markupsafe import Markup

from octavo.planner.roofline import Peaks, Work

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 26, 46


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    label: str
    work: Work
    elapsed_s: float

    @property
    def flops_per_s(self) -> float:
        return self.work.flops / self.elapsed_s

    def describe(self, peaks: Peaks) -> str:
        roof_s, bound = self.work.floor_s(peaks.read_bytes_per_s, peaks.flops_per_s)
        return (
            f"{self.label}: {self.work.flops_per_byte:.1f} FLOPs per byte, "
            f"{self.flops_per_s / 1e9:,.1f} GFLOP/s, {roof_s / self.elapsed_s:.0%} of the roof "
            f"({bound})"
        )


def roofline_plot(points: Sequence[RooflinePoint], peaks: Peaks) -> Markup:
    """Both axes logarithmic, by factors of two from left to right and of ten upwards."""
    plot = _Plot(points, peaks)
    ridge = peaks.flops_per_s / peaks.read_bytes_per_s
    low, high = plot.intensities
    roof = [(low, low * peaks.read_bytes_per_s), (ridge, peaks.flops_per_s)]
    roof.append((high, peaks.flops_per_s))
    path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in roof)
    plot.add(f'<polyline class="roof" points="{path}"/>')
    for number, point in enumerate(points):
        x, y = plot.x(point.work.flops_per_byte), plot.y(point.flops_per_s)
        kind = "before" if number == 0 else "after"
        plot.add(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        plot.text(x, y - 11, point.label.split()[0])
    return plot.svg()


class _Plot:
    def __init__(self, points: Sequence[RooflinePoint], peaks: Peaks) -> None:
        ridge = peaks.flops_per_s / peaks.read_bytes_per_s
        xs = [point.work.flops_per_byte for point in points]
        ys = [point.flops_per_s for point in points]
        self._x_log = (
            math.floor(math.log2(min(xs) / 1.5)),
            math.ceil(math.log2(max(*xs, ridge) * 1.5)),
        )
        self._y_log = (
            math.floor(math.log10(min(ys) / 2)),
            math.ceil(math.log10(peaks.flops_per_s * 1.2)),
        )
        self._marks: list[str] = ["<title>roofline of decode steps</title>"]
        for power in range(self._x_log[0], self._x_log[1] + 1):
            x = self.x(2.0**power)
            self.add(_line(x, _TOP, x, _HEIGHT - _BOTTOM))
            if (power - self._x_log[0]) % 2 == 0:
                self.text(x, _HEIGHT - _BOTTOM + 16, f"{2.0**power:g}")
        for power in range(self._y_log[0], self._y_log[1] + 1):
            y = self.y(10.0**power)
            self.add(_line(_LEFT, y, _WIDTH - _RIGHT, y))
            self.text(_LEFT - 6, y + 4, _flops(10.0**power), "end")
        self.text(
            (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "FLOPs per byte that a step must move"
        )

    @property
    def intensities(self) -> tuple[float, float]:
        return 2.0 ** self._x_log[0], 2.0 ** self._x_log[1]

    def x(self, flops_per_byte: float) -> float:
        low, high = self._x_log
        share = (math.log2(flops_per_byte) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, flops_per_s: float) -> float:
        low, high = self._y_log
        share = (math.log10(flops_per_s) - low) / (high - low)
        return _HEIGHT - _BOTTOM - max(share, 0.0) * (_HEIGHT - _TOP - _BOTTOM)

    def add(self, mark: str) -> None:
        self._marks.append(mark)

    def text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> Markup:
        marks = "\n".join(self._marks)
        return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{marks}</svg>')


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _flops(value: float) -> str:
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g}"
