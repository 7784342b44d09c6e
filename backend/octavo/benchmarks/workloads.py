"""Loads for the engine by name, and what is read off the times of their tokens.

Names: `p128-g64-c8` is 8 requests at once, each with a prompt of 128 random tokens and 64 output
tokens. `shared1024+32-g32-c8`: the first 1024 tokens of all prompts are the same, 32 more are a
request's own. `primed…`: the same, after one request with that beginning has finished. Prompts
differ between requests, runs and workloads, so a prefix cache finds what is shared and no more; a
name and a run always give the same ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from octavo.errors import ConfigError

DEFAULT_NAMES = (
    *(f"p128-g128-c{concurrency}" for concurrency in (1, 4, 8, 16, 32)),
    *(f"p1024-g64-c{concurrency}" for concurrency in (1, 8)),
    "shared1024+32-g32-c8",
    "primed1024+32-g32-c8",
)
DEFINITIONS = {
    "ttft_s": "median over requests of the time from submission to the first token",
    "ttft_max_s": "the time at which the last request got its first token",
    "prefill_tps": "prompt tokens of all requests / ttft_max_s; a prefix found in a cache shows as "
    "a higher rate",
    "decode_tps": "tokens after ttft_max_s / time after ttft_max_s, all requests together",
    "tpot_ms": "median over requests of (last - first token's time) / (tokens - 1)",
    "total_s": "submission to the last token of all",
}
WARM_UP_TOKENS = 8

_DISTINCT = re.compile(r"p(\d+)-g(\d+)-c(\d+)")
_SHARED = re.compile(r"(shared|primed)(\d+)\+(\d+)-g(\d+)-c(\d+)")
_MOST_TOKENS = 2**20
# Ids of prompts: away from both ends of a vocabulary, where special tokens are; of a small one all.
_VOCABULARY, _FIRST_ID, _LAST_IDS, _SMALL_VOCABULARY = 32_768, 300, 2000, 4096


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    shared_tokens: int = 0
    primed: bool = False

    def prompts(self, run: int, vocab_size: int = _VOCABULARY) -> list[list[int]]:
        """One for each request. Run -1 is the warm-up's."""
        seed = f"{self.prompt_tokens}/{self.concurrency}/{self.shared_tokens}/{self.primed}/{run}"
        generator = random.Random(seed)
        vocab_size = min(vocab_size, _VOCABULARY)
        first, end = _FIRST_ID, vocab_size - _LAST_IDS
        if vocab_size < _SMALL_VOCABULARY:
            first, end = 0, vocab_size

        def ids(count: int) -> list[int]:
            return [generator.randrange(first, end) for _ in range(count)]

        head = ids(self.shared_tokens)
        own = self.prompt_tokens - self.shared_tokens
        return [head + ids(own) for _ in range(self.concurrency)]

    def priming_prompt(self, prompts: list[list[int]]) -> list[int]:
        """What is shared of `prompts`, with an end that none of them has."""
        cut = self.shared_tokens
        return prompts[0][:cut] + prompts[0][cut:][::-1]


def parse_workload(name: str) -> Workload:
    """Raises ConfigError naming the option, its value and the limit."""
    if match := _DISTINCT.fullmatch(name):
        prompt, output, concurrency = map(int, match.groups())
        workload = Workload(name, prompt, output, concurrency)
    elif match := _SHARED.fullmatch(name):
        shared, own, output, concurrency = map(int, match.groups()[1:])
        prompt, primed = shared + own, match[1] == "primed"
        workload = Workload(name, prompt, output, concurrency, shared, primed)
        if not shared or not own:
            raise ConfigError(f"--workloads = {name}: shared and own tokens should be 1 or more")
    else:
        raise ConfigError(
            f"--workloads = {name}: should be of the form p128-g128-c8, shared1024+32-g32-c8 or "
            "primed1024+32-g32-c8"
        )
    for limits, what, value in (
        ((1, _MOST_TOKENS), "prompt tokens", workload.prompt_tokens),
        ((2, _MOST_TOKENS), "output tokens", workload.output_tokens),
        ((1, 4096), "requests", workload.concurrency),
    ):
        if not limits[0] <= value <= limits[1]:
            raise ConfigError(
                f"--workloads = {name}: {value} {what}; should be {limits[0]} to {limits[1]}"
            )
    return workload


def measures(workload: Workload, token_times_s: Sequence[Sequence[float]]) -> dict[str, float]:
    """By DEFINITIONS. token_times_s: of each request, seconds from the submission of all to each
    of its tokens."""
    assert len(token_times_s) == workload.concurrency
    assert all(len(times) == workload.output_tokens >= 2 for times in token_times_s)
    last_first = max(times[0] for times in token_times_s)
    end = max(times[-1] for times in token_times_s)
    later = sum(time > last_first for times in token_times_s for time in times)
    return {
        "prefill_tps": workload.concurrency * workload.prompt_tokens / last_first,
        "ttft_s": median(times[0] for times in token_times_s),
        "ttft_max_s": last_first,
        "decode_tps": later / (end - last_first),
        "tpot_ms": 1e3
        * median((times[-1] - times[0]) / (len(times) - 1) for times in token_times_s),
        "total_s": end,
    }


def rounded(value: float) -> float:
    """Five digits: more are noise."""
    return float(f"{value:.5g}")
