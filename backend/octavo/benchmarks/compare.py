"""Results of several engines side by side, and how far one is ahead of the fastest other.

A line is an object with peer, model, workload and measures, as `octavo bench engine` writes it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from octavo.benchmarks.weight_bits import base_model, weight_bits
from octavo.benchmarks.workloads import DEFAULT_NAMES
from octavo.errors import ConfigError

OURS = "octavo"


@dataclass(frozen=True, slots=True)
class Measure:
    field: str
    title: str
    higher_is_better: bool


MEASURES = (
    Measure("decode_tps", "Decode, output tokens/s", True),
    Measure("prefill_tps", "Prefill, prompt tokens/s", True),
    Measure("ttft_s", "Time to first token, s", False),
)
RATIO_RULE = (
    "Ratios are to the fastest other engine with the same weight bits, and above 1 where octavo is "
    "ahead: ours / theirs of rates, theirs / ours of times. Of lines with equal settings the "
    "median counts, of an engine's settings the best, measure by measure."
)
# What makes two lines the same experiment, beside engine, model and workload.
_SETTINGS = (
    "mode", "precision", "kv_precision", "kv_type", "kv_dtype", "kv_cache_dtype", "quantization",
    "eager", "label", "prop", "extra", "threads", "weight_format", "max_batched_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Engine:
    """What has a colour of its own."""

    peer: str
    bits: int

    def __str__(self) -> str:
        return f"{self.peer}, {self.bits} bit"


Best = dict[str, float]  # by measure's field, and roofline_ratio where it is known


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one base model: by workload and engine the best of each measure."""

    model: str
    results: dict[str, dict[Engine, Best]]

    @property
    def engines(self) -> list[Engine]:
        """Ours first."""
        found = {engine for by_engine in self.results.values() for engine in by_engine}
        return sorted(found, key=lambda engine: (engine.peer != OURS, engine))


@dataclass(frozen=True, slots=True)
class Ratio:
    """`ours` beside `fastest`, the best of the others with as many bits; None: there is none."""

    ours: float
    fastest: float | None = None
    peer: str | None = None
    ratio: float | None = None


def read_lines(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Raises ConfigError naming file and line."""
    lines = []
    for file in files:
        try:
            texts = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from None
        for number, text in enumerate(texts, 1):
            if text.strip():
                lines.append(_parsed(text, f"{file}, line {number}"))
    return lines


def _parsed(text: str, place: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    names = ("peer", "model", "workload")
    if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in names):
        raise ConfigError(f"{place}: should be an object with the texts {', '.join(names)}")
    return line


def compare(lines: Iterable[dict[str, Any]], model: str = "") -> list[Comparison]:
    """One of each base model whose name has `model` in it; of those that OURS was measured with,
    if it was with any. Lines with an error are left out."""
    values: dict[str, dict[str, dict[Engine, dict[str, dict[str, list[float]]]]]] = {}
    ours: set[str] = set()
    for line in lines:
        base = base_model(line)
        if "error" in line or model not in base:
            continue
        engine = Engine(line["peer"], weight_bits(line))
        if engine.peer == OURS:
            ours.add(base)
        settings = json.dumps([line.get(name) for name in _SETTINGS])
        by_engine = values.setdefault(base, {}).setdefault(line["workload"], {})
        by_setting = by_engine.setdefault(engine, {}).setdefault(settings, defaultdict(list))
        for field in (*(measure.field for measure in MEASURES), "roofline_ratio"):
            if isinstance(line.get(field), int | float):
                by_setting[field].append(line[field])
    return [
        Comparison(
            base,
            {
                workload: {
                    engine: _best(own) for engine, own in sorted(values[base][workload].items())
                }
                for workload in _in_order(values[base])
            },
        )
        for base in sorted(ours & set(values) or values)
    ]


def _best(by_setting: dict[str, dict[str, list[float]]]) -> Best:
    best: Best = {}
    for measure in MEASURES:
        medians = [median(own[measure.field]) for own in by_setting.values() if own[measure.field]]
        if medians:
            best[measure.field] = (max if measure.higher_is_better else min)(medians)
    rooflines = [
        median(own["roofline_ratio"]) for own in by_setting.values() if own["roofline_ratio"]
    ]
    if rooflines:
        best["roofline_ratio"] = max(rooflines)
    return best


def _in_order(names: Iterable[str]) -> list[str]:
    known = [name for name in DEFAULT_NAMES if name in set(names)]
    return known + sorted(set(names) - set(known))


def ratios(
    by_engine: dict[Engine, Best], ours: Engine, measures: Sequence[Measure] = MEASURES
) -> dict[str, Ratio]:
    """Of one workload, by measure's field."""
    found = {}
    for measure in measures:
        if measure.field not in by_engine[ours]:
            continue
        own = by_engine[ours][measure.field]
        others = {
            engine.peer: best[measure.field]
            for engine, best in by_engine.items()
            if engine.peer != OURS and engine.bits == ours.bits and measure.field in best
        }
        if not others:
            found[measure.field] = Ratio(own)
            continue
        peer = (max if measure.higher_is_better else min)(others, key=lambda name: others[name])
        fastest = others[peer]
        ratio = own / fastest if measure.higher_is_better else fastest / own
        found[measure.field] = Ratio(own, fastest, peer, ratio)
    return found
