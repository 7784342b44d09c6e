"""One prompt alone against N identical ones at once: what is measured, and what came out.

A server without paging reserves the longest context for each sequence, in one piece. Here that is a
block as long as the context; the KV memory has the same bytes with and without paging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from octavo.benchmarks.machine import machine, versions
from octavo.benchmarks.records import LoadRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As asked for; None is settled by the checkpoint, see `identical_worker.settle`."""

    model: str | None = None
    dtype: str = "auto"
    num_threads: int | None = None
    num_requests: int = 8
    prompt_tokens: int | None = None
    output_tokens: int = 64
    context_tokens: int | None = None
    kv_cache_bytes: int | None = None
    block_size: int = 16
    rounds: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    model: str
    dtype: str
    num_threads: int | None
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    context_tokens: int
    kv_cache_bytes: int
    context_bytes: int  # of a context's KV
    block_size: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Configuration:
    paging: bool
    sharing: bool
    # Whether the prompts of a load have run before on the same engine.
    caches: tuple[str, ...] = ("",)

    @property
    def rows(self) -> list[str]:
        switches = f"paging {_on(self.paging)}, sharing {_on(self.sharing)}"
        return [f"{switches}, {cache} cache" if cache else switches for cache in self.caches]


def _on(switch: bool) -> str:
    return "on" if switch else "off"


CONFIGURATIONS = (
    Configuration(paging=False, sharing=False),
    Configuration(paging=True, sharing=False),
    Configuration(paging=True, sharing=True, caches=("cold", "warm")),
)
ROWS = [row for configuration in CONFIGURATIONS for row in configuration.rows]
IMPOSSIBLE = (
    "paging off, sharing on is no configuration: only full blocks are shared, and a block as long "
    "as the context is never full, because a sequence's last token is never computed."
)
DEFINITIONS = {
    "paging off": "each sequence reserves one block as long as the whole context; the KV memory "
    "has the same bytes as with paging",
    "sharing": "the prefix cache: full blocks of equal beginnings are computed and kept once",
    "cold, warm cache": "the prompt is new to the engine; the same load has run before",
    "TTFT": "submitted to the engine → first token: no text, no network",
    "end to end": "submitted → last token",
    "p50, max": "of the requests of one load; then the median of the rounds",
    "output tokens/s": "output tokens of all requests / (submission → last token of all)",
    "computed tokens": "what prefill steps computed of the prompts, and again after a preemption",
    "hit tokens": "of the prompts, found in the prefix cache and not computed",
    "KV reserved": "bytes of the blocks that sequences hold, at the peak; a block that is cached "
    "and held by nobody does not count",
    "KV in use": "of those, the slots that hold a token, at the peak",
    "running at once": "sequences that hold blocks, at the peak",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One load in one round."""

    round: int
    row: str  # of ROWS
    num_requests: int
    load: LoadRecord


Figure = Callable[[LoadRecord], float]
FIGURES: dict[str, Figure] = {
    "ttft_p50_s": lambda load: median(r.ttft_s for r in load.requests),
    "ttft_max_s": lambda load: max(r.ttft_s for r in load.requests),
    "e2e_p50_s": lambda load: median(r.e2e_s for r in load.requests),
    "e2e_max_s": lambda load: max(r.e2e_s for r in load.requests),
    "output_tps": lambda load: load.output_tps,
    "computed_tokens": lambda load: load.prefill_tokens,
    "hit_tokens": lambda load: load.hit_tokens,
    "kv_reserved_bytes": lambda load: load.peak_reserved_bytes,
    "kv_filled_bytes": lambda load: load.peak_filled_bytes,
    "running": lambda load: load.peak_running,
}
Medians = dict[str, dict[int, dict[str, float]]]  # by row, number of requests, figure


def medians(samples: Sequence[Sample]) -> Medians:
    """Over the rounds. What was not measured is not there."""
    result: Medians = {}
    for row in ROWS:
        for num_requests in sorted({sample.num_requests for sample in samples}):
            loads = [s.load for s in samples if (s.row, s.num_requests) == (row, num_requests)]
            if loads:
                result.setdefault(row, {})[num_requests] = {
                    name: median(figure(load) for load in loads) for name, figure in FIGURES.items()
                }
    return result


def ratios(settings: Settings, found: Medians) -> dict[str, dict[str, float]]:
    """Of N requests to one, by row and figure. What divides by 0 is left out."""
    return {
        row: {
            name: by_count[settings.num_requests][name] / alone
            for name, alone in by_count[1].items()
            if alone
        }
        for row, by_count in found.items()
        if {1, settings.num_requests} <= by_count.keys()
    }


def document(settings: Settings, samples: Sequence[Sample]) -> Mapping[str, Any]:
    """Everything, for JSON."""
    found = medians(samples)
    return {
        "benchmark": "identical",
        "complete": len(samples) == settings.rounds * len(ROWS) * 2,
        "versions": versions(),
        "machine": machine(),
        "settings": {**asdict(settings), "model": Path(settings.model).name},
        "definitions": {**DEFINITIONS, "not measured": IMPOSSIBLE},
        "rounds": [asdict(sample) for sample in samples],
        "medians": found,
        "ratios": ratios(settings, found),
    }
