"""What one load on one engine gave: plain numbers, which go through JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request, counted from when it was submitted to the engine."""

    ttft_s: float
    e2e_s: float
    longest_gap_s: float  # between two of its output tokens
    output_tokens: int
    cached_tokens: int  # of its prompt, found in the prefix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """Requests that were submitted together. Peaks are of the states after each step."""

    requests: tuple[RequestRecord, ...]
    duration_s: float  # submission → last token of all
    prefill_tokens: int  # computed in prefill: of prompts, and again after a preemption
    block_bytes: int  # of KV memory, all layers
    peak_running: int
    peak_reserved_bytes: int  # KV memory of blocks that sequences hold
    peak_filled_bytes: int  # of those, the slots that hold a token
    # What the scheduler's counters rose by; of one by kind, each as `name.kind`.
    counters: Mapping[str, int]
    quality: str | None = None  # "ungated": quantized, and what that costs was not looked at

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LoadRecord:
        requests = tuple(RequestRecord(**request) for request in values["requests"])
        return cls(**{**values, "requests": requests})

    def counted(self, name: str) -> int:
        """Of all kinds together."""
        return sum(n for key, n in self.counters.items() if key.partition(".")[0] == name)

    @property
    def output_tps(self) -> float:
        return sum(request.output_tokens for request in self.requests) / self.duration_s

    @property
    def hit_tokens(self) -> int:
        return sum(request.cached_tokens for request in self.requests)
