"""The report's pictures, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from loadtest import summary
from loadtest.records import Record
from loadtest.settings import RunSettings
from loadtest.validity import lag_limit_s

_COLORS = {
    "ok": "#2f6fab",
    "error": "#c0392b",
    "cancelled": "#8e7cc3",
    "cut_off": "#999999",
}
_SECOND_COLOR = "#d9822b"
_MAX_POINTS = 500
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "octavo",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
Metric = Callable[[Record], float | None]


def pictures(records: Sequence[Record], settings: RunSettings) -> dict[str, str]:
    """SVG by caption."""
    ok = [record for record in records if record.status == "ok"]
    made: dict[str, str] = {}
    with matplotlib.rc_context(_STYLE):
        if ok:
            made["Share of requests at or below a latency"] = _latencies(ok, settings)
            made["Inter-token latency: gaps between outputs"] = _itl_histogram(ok)
        if any(record.sent_ns is not None for record in records):
            made["Time line: requests, in flight, output tokens per second"] = _time_line(records)
        if settings.is_open_loop and ok:
            made["Schedule lag, and latency from sending and from the schedule"] = _open_loop(
                records, ok
            )
    return made


def _latencies(ok: Sequence[Record], settings: RunSettings) -> str:
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    panels: list[tuple[str, Metric, float | None]] = [
        ("TTFT", summary.ttft_s, settings.slo_ttft_s),
        ("TPOT", summary.tpot_s, settings.slo_tpot_s),
        ("e2e", summary.e2e_s, None),
    ]
    for axes, (name, metric, slo_s) in zip(figure.subplots(1, 3), panels, strict=True):
        _cdf(axes, _values_ms(ok, metric), _COLORS["ok"])
        axes.set(xlabel=f"{name}, ms", ylim=(0, 1))
        if slo_s is not None and slo_s * 1e3 <= 2 * axes.get_xlim()[1]:
            _limit(axes, slo_s * 1e3, "SLO")
    return _svg(figure)


def _itl_histogram(ok: Sequence[Record]) -> str:
    gaps_ms = np.array([gap * 1e3 for record in ok for gap in summary.itl_s(record)])
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    axes = figure.subplots()
    if len(gaps_ms):
        axes.hist(gaps_ms, bins=80, color=_COLORS["ok"])
    axes.set(xlabel="gap, ms", ylabel="gaps", yscale="log")
    return _svg(figure)


def _time_line(records: Sequence[Record]) -> str:
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    bars, flight, tokens = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
    _request_bars(bars, records)
    starts, ends = _intervals_s(records)
    times = np.concatenate([starts, ends])
    order = np.argsort(times, kind="stable")
    steps = np.concatenate([np.ones(len(starts)), -np.ones(len(ends))])[order]
    flight.step(times[order], np.cumsum(steps), where="post", color=_COLORS["ok"], linewidth=1)
    flight.set(ylabel="in flight", ylim=(0, None))
    at_s = np.array([t / 1e9 for r in records for t in r.output_ns])
    weights = np.array([n for r in records for n in r.output_tokens])
    if len(at_s):
        edges = np.arange(0, np.ceil(at_s.max()) + 1)
        counts, _ = np.histogram(at_s, bins=edges, weights=weights)
        tokens.stairs(counts, edges, color=_COLORS["ok"], fill=True, alpha=0.7)
    tokens.set(ylabel="tokens/s", xlabel="seconds since the start", ylim=(0, None), xlim=(0, None))
    return _svg(figure)


def _request_bars(axes: Axes, records: Sequence[Record]) -> None:
    """A line for each request, in the order of sending; pale until its first text."""
    sent = sorted((r for r in records if r.sent_ns is not None), key=lambda r: r.sent_ns or 0)
    many = len(sent) > _MAX_POINTS
    for status, color in _COLORS.items():
        waiting, decoding = [], []
        for row, record in enumerate(sent):
            if record.status != status:
                continue
            start_s, end_s = _interval_s(record)
            first_s = record.first_text_ns / 1e9 if record.first_text_ns else end_s
            waiting.append([(start_s, row), (first_s, row)])
            decoding.append([(first_s, row), (end_s, row)])
        if not waiting:
            continue
        width = min(3.0, max(0.6, 140 / len(sent)))
        for segments, alpha in ((waiting, 0.35), (decoding, 1.0)):
            axes.add_collection(
                LineCollection(segments, colors=color, alpha=alpha, lw=width, rasterized=many)
            )
        axes.plot([], [], color=color, label=status.replace("_", " "))
    axes.autoscale_view()
    axes.set(ylabel="request, pale: no text yet", ylim=(len(sent), -1))
    axes.legend(loc="lower left", ncols=4)


def _open_loop(records: Sequence[Record], ok: Sequence[Record]) -> str:
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    lag, ttft, e2e = figure.subplots(1, 3)
    _cdf(lag, _values_ms(records, summary.lag_s), _COLORS["ok"])
    ttft_ms = _values_ms(ok, summary.ttft_s)
    if len(ttft_ms):
        limit_ms = 1e3 * lag_limit_s(float(np.median(ttft_ms)) / 1e3)
        _limit(lag, limit_ms, "limit of p99")
    lag.set(xlabel="schedule lag, ms", ylim=(0, 1))
    pairs: list[tuple[Axes, str, Metric, Metric]] = [
        (ttft, "TTFT", summary.ttft_s, summary.response_ttft_s),
        (e2e, "e2e", summary.e2e_s, summary.response_e2e_s),
    ]
    for axes, name, service, response in pairs:
        _cdf(axes, _values_ms(ok, service), _COLORS["ok"], "from sending")
        _cdf(axes, _values_ms(ok, response), _SECOND_COLOR, "from the schedule", "--")
        axes.set(xlabel=f"{name}, ms", ylim=(0, 1))
        axes.legend(loc="lower right")
    return _svg(figure)


def _cdf(
    axes: Axes, values: NDArray[np.float64], color: str, label: str = "", style: str = "-"
) -> None:
    if not len(values):
        return
    shares = np.linspace(0, 1, min(len(values), _MAX_POINTS))
    axes.plot(np.quantile(values, shares), shares, style, color=color, label=label, linewidth=1.5)
    axes.set_xlim(left=0)


def _limit(axes: Axes, at_ms: float, name: str) -> None:
    axes.axvline(at_ms, color=_COLORS["error"], linewidth=1, linestyle="--")
    axes.annotate(
        name, (at_ms, 0.02), xytext=(3, 0), textcoords="offset points", color=_COLORS["error"]
    )
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.4 * at_ms))


def _values_ms(records: Sequence[Record], metric: Metric) -> NDArray[np.float64]:
    return np.array([value * 1e3 for r in records if (value := metric(r)) is not None])


def _interval_s(record: Record) -> tuple[float, float]:
    assert record.sent_ns is not None and record.ended_ns is not None
    return record.sent_ns / 1e9, record.ended_ns / 1e9


def _intervals_s(
    records: Sequence[Record],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = np.array([_interval_s(r) for r in records if r.sent_ns is not None])
    return pairs[:, 0], pairs[:, 1]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
