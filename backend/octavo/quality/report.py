"""The gate's page for people: numbers with their bounds, plots, and the passages that lost most.

It needs nothing from elsewhere, and everything in it that comes from a text is escaped.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from octavo.quality.evidence import Record
from octavo.quality.measure import Measured, by_document
from octavo.quality.plots import documents_plot, positions_plot
from octavo.quality.verdict import figures

_PASSAGES, _PASSAGE_TOKENS, _CONTEXT_TOKENS = 8, 24, 24
_WORST_TOKENS = 5
_DARKEST_NATS = 8.0  # of the shade behind a token


@dataclass(frozen=True, slots=True)
class Token:
    """shade: 0 to 1, of each side's loss. A token that only leads up to a passage has none."""

    text: str
    baseline_nats: float | None = None
    candidate_nats: float | None = None
    baseline_top: str = ""
    candidate_top: str = ""

    @property
    def difference(self) -> float:
        assert self.baseline_nats is not None and self.candidate_nats is not None
        return self.candidate_nats - self.baseline_nats

    def shade(self, side: str) -> float:
        nats = self.baseline_nats if side == "baseline" else self.candidate_nats
        return min((nats or 0.0) / _DARKEST_NATS, 1.0)


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens of one document that together lost `lost_nats`; `worst` are those that lost most."""

    place: str
    position: int
    lost_nats: float
    tokens: list[Token]
    worst: list[Token]


def page(record: Record, measured: Measured) -> str:
    """HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    differences, tokens = by_document(measured)
    places = [measured.documents[number].name for number in _scored_documents(measured)]
    return environment.get_template("report.html").render(
        record=record,
        rows=figures(record.numbers, record.margin),
        positions=positions_plot(*_by_position(measured), record.margin),
        by_document=documents_plot(places, differences / tokens, tokens, record.margin),
        passages=worst_passages(measured),
    )


def worst_passages(measured: Measured) -> list[Passage]:
    """Those that lost most, at most one of each window."""
    ranked = []
    for number, own in enumerate(measured.scores):
        lost = own.candidate_nll.astype(np.float64) - own.baseline_nll
        width = min(_PASSAGE_TOKENS, len(lost))
        sums = np.convolve(lost, np.ones(width), mode="valid")
        begin = int(sums.argmax())
        ranked.append((float(sums[begin]), number, begin, width))
    ranked.sort(reverse=True)
    return [_passage(measured, *own) for own in ranked[:_PASSAGES] if own[0] > 0]


def _passage(measured: Measured, lost: float, number: int, begin: int, width: int) -> Passage:
    window, own = measured.windows[number], measured.scores[number]
    first = window.given + begin
    lead = max(first - _CONTEXT_TOKENS, 0)
    texts = measured.tokenizer.pieces(window.token_ids[lead : first + width])
    tokens = [Token(text) for text in texts[: first - lead]]
    for offset, text in enumerate(texts[first - lead :]):
        i = begin + offset
        tops = (_top(measured, own.baseline_top[i]), _top(measured, own.candidate_top[i]))
        tokens.append(Token(text, float(own.baseline_nll[i]), float(own.candidate_nll[i]), *tops))
    worst = sorted(tokens[first - lead :], key=lambda token: -token.difference)[:_WORST_TOKENS]
    place = measured.documents[window.document].name
    return Passage(place, first, lost, tokens, worst)


def _top(measured: Measured, token_id: np.int32) -> str:
    return "no number" if token_id < 0 else "".join(measured.tokenizer.pieces([int(token_id)]))


def _scored_documents(measured: Measured) -> list[int]:
    return sorted({window.document for window in measured.windows})


def _by_position(
    measured: Measured,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For stretches of positions: where each begins (and the last ends), its mean difference, and
    the standard error of that, over the windows that have tokens in it."""
    longest = max(len(window.token_ids) - 1 for window in measured.windows)
    edges = _edges(longest)
    sums = np.zeros((len(measured.windows), len(edges) - 1))
    counts = np.zeros_like(sums)
    for row, (window, own) in enumerate(zip(measured.windows, measured.scores, strict=True)):
        positions = np.arange(window.given, len(window.token_ids))
        which = np.searchsorted(edges, positions, side="right") - 1
        which = np.minimum(which, len(edges) - 2)
        lost = own.candidate_nll.astype(np.float64) - own.baseline_nll
        sums[row] = np.bincount(which, lost, len(edges) - 1)
        counts[row] = np.bincount(which, minlength=len(edges) - 1)
    total = np.maximum(counts.sum(0), 1)
    means = sums.sum(0) / total
    errors = np.sqrt(((sums - means * counts) ** 2).sum(0)) / total
    return edges.astype(np.float64), means, errors


def _edges(longest: int) -> NDArray[np.int64]:
    """Twice as wide each time, as late positions are few windows'."""
    edges = [1, 16]
    while 2 * edges[-1] <= longest:
        edges.append(2 * edges[-1])
    inner = [edge for edge in edges[1:] if edge <= longest // 2]
    return np.array([1, *inner, longest + 1])
