"""The stages in the playbook's order: each has one switch more than the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Judged = Literal["pass", "fail", "inconclusive", "no signal", "not judged"]


@dataclass(frozen=True, slots=True)
class Stage:
    """What is on. key: in files; label: in tables, the article's number first.

    static: a batch is admitted when the one before it has ended, and not sooner
    paged: else each sequence reserves one piece as long as the longest request
    """

    key: str
    label: str
    switch: str
    is_ours: bool = True
    static: bool = True
    paged: bool = False
    sharing: bool = False
    kv: str = "auto"
    weights: str = "auto"

    @property
    def is_quantized(self) -> bool:
        return self.kv != "auto" or self.weights != "auto"

    def engine_settings(self, context_tokens: int) -> dict[str, Any]:
        """Fields of EngineConfig in which stages differ, but for the folder of the weights."""
        return {
            "block_size": "auto" if self.paged else context_tokens,
            "enable_prefix_caching": self.sharing,
            "kv_cache_dtype": self.kv,
        }


GENERATE = Stage("generate", "0a transformers", "transformers generate, static batches", False)
CONTIGUOUS = Stage("contiguous", "0b contiguous", "contiguous KV memory, static batches")
PAGED = replace(
    CONTIGUOUS, key="paged", label="1 paged KV", switch="KV memory in blocks", paged=True
)
CONTINUOUS = replace(
    PAGED, key="continuous", label="2 continuous", switch="continuous batching", static=False
)
SHARED = replace(
    CONTINUOUS, key="prefix", label="3 prefix cache", switch="beginnings are shared", sharing=True
)
KV_INT8 = replace(
    SHARED, key="kv-int8", label="4 int8 KV", switch="keys and values in int8", kv="int8"
)
WEIGHTS_INT4 = replace(
    KV_INT8, key="weights-int4", label="5 int4 weights", switch="weights in int4", weights="int4"
)
STAGES = (GENERATE, CONTIGUOUS, PAGED, CONTINUOUS, SHARED, KV_INT8, WEIGHTS_INT4)
LAST_UNQUANTIZED = SHARED


def is_kept(judged: Judged | None) -> bool:
    """Whether later stages build on a stage: one that the gate refuses is left out of them. A
    model that cannot be judged goes on, and what it shows counts as speed alone."""
    return judged not in ("fail", "inconclusive")


def is_proven(judged: Judged | None) -> bool:
    """None is of a stage that quantizes nothing."""
    return judged in (None, "pass")


def as_measured(stage: Stage, verdicts: Mapping[str, Judged]) -> Stage:
    """`stage` without the switches that the gate has refused before it."""
    if stage is WEIGHTS_INT4 and not is_kept(verdicts.get(KV_INT8.key)):
        return replace(stage, kv="auto")
    return stage
