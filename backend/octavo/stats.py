"""Counts and latencies of one engine, in plain Python; serving exports them."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from octavo.accounts import TenantLabels

LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip


Phase = Literal["prefill", "decode", "mixed"]  # what a step computed
PHASES: tuple[Phase, ...] = ("prefill", "decode", "mixed")
SLOName = Literal["ttft", "tpot"]
SLOS: tuple[SLOName, ...] = ("ttft", "tpot")


class Histogram:
    """Cumulative-on-export counts of observed seconds."""

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BUCKETS_S) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1

    def cumulative(self) -> list[int]:
        """Observations up to each bound; the last entry has all of them."""
        total, result = 0, []
        for count in self._counts:
            total += count
            result.append(total)
        return result


@dataclass(slots=True)
class EngineStats:
    """Written by the thread that steps the engine."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    busy_s: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    queue_time_s: Histogram = field(default_factory=Histogram)


class RequestStats:
    """What requests met on their way out, seen from the server's side. Any thread may write.

    TTFT: received → first non-empty text. ITL: each gap between consecutive outputs. TPOT:
    (end to end − TTFT) / (output tokens − 1), for each request with two or more.
    """

    def __init__(self, labels: TenantLabels | None = None) -> None:
        """labels: of tenants; the engine's own, so that both count the same ones."""
        self._labels = labels or TenantLabels()
        self._lock = threading.Lock()
        self.finished: Counter[str] = Counter()  # by finish reason
        self.tenants: dict[str, tuple[int, int]] = {}  # prompt and output tokens; "" names nobody
        self.invalid = 0
        # (SLO, met) of the requests that ended without an error.
        self.slo_requests = {(slo, met): 0 for slo in SLOS for met in (True, False)}
        self.good_requests = 0
        self.good_tokens = 0
        self.ttft_s = Histogram()
        self.itl_s = Histogram()
        self.tpot_s = Histogram()
        self.e2e_s = Histogram()

    def count_invalid(self) -> None:
        with self._lock:
            self.invalid += 1

    def observe_output(self, gap_s: float, *, is_first: bool) -> None:
        with self._lock:
            (self.ttft_s if is_first else self.itl_s).observe(gap_s)

    def observe_finish(
        self,
        reason: str,
        tenant: str,
        num_prompt_tokens: int,
        num_tokens: int,
        e2e_s: float,
        tpot_s: float | None,
        met: Mapping[SLOName, bool] | None,
    ) -> None:
        """met: each SLO that applies to it and whether the request met it; None for an error, which
        is never good."""
        with self._lock:
            self.finished[reason] += 1
            tenant = self._labels.of(tenant)
            prompt, output = self.tenants.get(tenant, (0, 0))
            self.tenants[tenant] = prompt + num_prompt_tokens, output + num_tokens
            self.e2e_s.observe(e2e_s)
            if tpot_s is not None:
                self.tpot_s.observe(tpot_s)
            if met is None:
                return
            for slo, is_met in met.items():
                self.slo_requests[slo, is_met] += 1
            if all(met.values()):
                self.good_requests += 1
                self.good_tokens += num_tokens
