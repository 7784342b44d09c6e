"""The report's plots, as SVG."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from octavo.quality.verdict import percent

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40
# Nats. Beyond, a candidate guesses; and far beyond, perplexity is no number any more.
_MOST_LABELLED = 20.0

Floats = NDArray[np.float64]


class _Plot:
    """Marks on a scale of nats per token, whose labels are perplexity losses; zero and the margin
    are drawn as lines."""

    def __init__(self, title: str, lowest: float, highest: float, margin: float) -> None:
        limit = float(np.log1p(margin))
        low, high = min(lowest, 0.0), max(highest, 1.2 * limit)
        self._low, self._span = low - 0.05 * (high - low), 1.1 * (high - low)
        self._marks = [f"<title>{escape(title)}</title>"]
        highest = min(self._low + self._span, _MOST_LABELLED)
        for ratio in _ticks(float(np.expm1(self._low)), float(np.expm1(highest))):
            # A label beside the margin's would cover it.
            if ratio and abs(self.y(float(np.log1p(ratio))) - self.y(limit)) > 14:
                self._line(float(np.log1p(ratio)), "grid", f"{100 * ratio:+.3g} %")
        self._line(0.0, "axis", "0")
        self._line(limit, "margin", percent(margin))

    def y(self, nats: float) -> float:
        return _HEIGHT - _BOTTOM - (nats - self._low) / self._span * (_HEIGHT - _TOP - _BOTTOM)

    def x(self, share: float) -> float:
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _line(self, nats: float, kind: str, label: str) -> None:
        y = self.y(nats)
        self.add(f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" '
                 f'y2="{y:.1f}"/>')  # fmt: skip
        self.text(_LEFT - 6, y + 4, label, "end")

    def add(self, mark: str) -> None:
        self._marks.append(mark)

    def text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def caption(self, text: str) -> None:
        self.text((_WIDTH + _LEFT) / 2, _HEIGHT - 6, text)

    def svg(self) -> Markup:
        marks = "\n".join(self._marks)
        return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{marks}</svg>')


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = int(np.ceil(low / step)), int(np.floor(high / step))
    return [float(step * count) for count in range(first, last + 1)]


def positions_plot(edges: Floats, means: Floats, errors: Floats, margin: float) -> Markup:
    """Mean loss in nats per token, stretch by stretch, with two standard errors each way."""
    plot = _Plot(
        "loss by position", float((means - 2 * errors).min()), float((means + 2 * errors).max()),
        margin,
    )  # fmt: skip
    for index, (mean, error) in enumerate(zip(means, errors, strict=True)):
        x = plot.x((index + 0.5) / len(means))
        low, high = plot.y(mean - 2 * error), plot.y(mean + 2 * error)
        plot.add(f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        plot.add(f'<circle class="mean" cx="{x:.1f}" cy="{plot.y(mean):.1f}" r="4"/>')
        plot.text(x, _HEIGHT - _BOTTOM + 14, f"{edges[index]:.0f}–{edges[index + 1] - 1:.0f}")
    plot.caption("tokens before the predicted one")
    return plot.svg()


def documents_plot(places: Sequence[str], means: Floats, tokens: Floats, margin: float) -> Markup:
    """Each document's loss in nats per token, the smallest first; the area of a circle is its
    share of the tokens."""
    plot = _Plot("loss by document", float(means.min()), float(means.max()), margin)
    for rank, index in enumerate(np.argsort(means, kind="stable")):
        radius = 2 + 6 * float(np.sqrt(tokens[index] / tokens.max()))
        label = f"{places[index]}: {means[index]:+.4f} nats a token, {tokens[index]:,.0f} tokens"
        plot.add(
            f'<circle class="document" cx="{plot.x((rank + 0.5) / len(means)):.1f}" '
            f'cy="{plot.y(means[index]):.1f}" r="{radius:.1f}"><title>{escape(label)}</title>'
            "</circle>"
        )
    plot.caption(f"{len(means):,} documents, the one that loses least first")
    return plot.svg()
