"""What one load on one stage gave, as it goes through JSON and back, and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from octavo.config import SLO
from octavo.planner.roofline import Work

DEFINITIONS = {
    "closed loop": "so many users at once, each of whom sends the next request when the last is "
    "answered; the same requests in every stage",
    "window": "from the first request to when the last is given to the engine: all users are at "
    "work. Requests go on behind it to their end, but no token of then counts",
    "tokens/s": "output tokens within the window / its length",
    "TTFT": "sent by the user → first token, so with the wait for the batch before",
    "TPOT": "(last token − first token) / (tokens − 1), one for each request",
    "good": "a request within the SLO, both TTFT and TPOT; its output tokens are good tokens",
    "goodput": "good requests that ended within the window / its length",
    "users": "of 1, 2, 4 …, as many as give the most good tokens per second in the first round; "
    "further rounds repeat that load, and numbers are the medians of the rounds",
    "cost": "machine time for a million good tokens, at the price of the machine if there is one; "
    "a ratio to stage 0b otherwise",
    "fit": "requests of mean length that run at once from their beginning to their end in the same "
    "bytes of memory, weights included, and none is preempted",
}


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Of one request. window_tokens: of its tokens, those within the window."""

    ttft_s: float
    e2e_s: float
    output_tokens: int
    window_tokens: int
    ended_in_window: bool
    cached_tokens: int = 0

    @property
    def tpot_s(self) -> float:
        return (self.e2e_s - self.ttft_s) / max(self.output_tokens - 1, 1)

    def is_good(self, slo: SLO) -> bool:
        return self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s


@dataclass(frozen=True, slots=True)
class DecodeSteps:
    """Steps that decode and do nothing else: what they had to move and compute, and their time."""

    steps: int
    bytes: float
    flops: float
    elapsed_s: float

    @property
    def work(self) -> Work:
        return Work(self.bytes, self.flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One load.

    fit: requests of mean length in the memory. memory_bytes: weights and KV memory.
    prompt_tokens, computed_tokens: of all prompts, and what was computed of them
    """

    stage: str
    round: int
    users: int
    window_s: float
    requests: tuple[RequestTimes, ...]
    prompt_tokens: int
    computed_tokens: int
    preemptions: int
    most_running: int
    fit: int
    weight_bytes: int
    kv_bytes: int
    block_tokens: int
    decode: DecodeSteps | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        decode = values["decode"]
        return cls(
            **{
                **values,
                "requests": tuple(RequestTimes(**each) for each in values["requests"]),
                "decode": None if decode is None else DecodeSteps(**decode),
            }
        )

    @property
    def tokens_per_s(self) -> float:
        return sum(each.window_tokens for each in self.requests) / self.window_s

    def good_tokens_per_s(self, slo: SLO) -> float:
        good = sum(each.window_tokens for each in self.requests if each.is_good(slo))
        return good / self.window_s

    def good_ratio(self, slo: SLO) -> float:
        return sum(each.is_good(slo) for each in self.requests) / len(self.requests)

    def goodput_rps(self, slo: SLO) -> float:
        ended = sum(each.is_good(slo) and each.ended_in_window for each in self.requests)
        return ended / self.window_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one stage at its load: medians of the rounds. least and most: of the rounds' good tokens
    per second."""

    users: int
    rounds: int
    tokens_per_s: float
    good_tokens_per_s: float
    least_good_tokens_per_s: float
    most_good_tokens_per_s: float
    goodput_rps: float
    good_ratio: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    e2e_p50_s: float
    computed_ratio: float
    preemptions: float
    most_running: int
    fit: int
    weight_bytes: int
    kv_bytes: int
    block_tokens: int


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many are not above: one that was measured."""
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)) - 1, 0)]


def best_users(samples: Sequence[Sample], slo: SLO) -> int:
    """Of a round's loads, the one with the most good tokens; without any, with the most tokens."""
    best = max(samples, key=lambda each: (each.good_tokens_per_s(slo), each.tokens_per_s))
    return best.users


def is_past_best(samples: Sequence[Sample], slo: SLO) -> bool:
    """Two loads in a row have given less than one before: more users will not mend that."""
    rates = [each.good_tokens_per_s(slo) for each in sorted(samples, key=lambda s: s.users)]
    return len(rates) >= 3 and max(rates[-2:]) < max(rates[:-2])


def figures(samples: Sequence[Sample], slo: SLO) -> Figures:
    """samples: one load, of each round one."""
    good = [each.good_tokens_per_s(slo) for each in samples]

    def of_requests(share: float, name: str) -> float:
        return median(
            quantile([getattr(request, name) for request in each.requests], share)
            for each in samples
        )

    first = samples[0]
    assert all(each.users == first.users for each in samples)
    return Figures(
        users=first.users,
        rounds=len(samples),
        tokens_per_s=median(each.tokens_per_s for each in samples),
        good_tokens_per_s=median(good),
        least_good_tokens_per_s=min(good),
        most_good_tokens_per_s=max(good),
        goodput_rps=median(each.goodput_rps(slo) for each in samples),
        good_ratio=median(each.good_ratio(slo) for each in samples),
        ttft_p50_s=of_requests(0.5, "ttft_s"),
        ttft_p95_s=of_requests(0.95, "ttft_s"),
        tpot_p50_s=of_requests(0.5, "tpot_s"),
        tpot_p95_s=of_requests(0.95, "tpot_s"),
        e2e_p50_s=of_requests(0.5, "e2e_s"),
        computed_ratio=median(each.computed_tokens / each.prompt_tokens for each in samples),
        preemptions=median(each.preemptions for each in samples),
        most_running=max(each.most_running for each in samples),
        fit=first.fit,
        weight_bytes=first.weight_bytes,
        kv_bytes=first.kv_bytes,
        block_tokens=first.block_tokens,
    )
