"""Runs of the same prompts: alone, and when another run counts as equal to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from factories import Recorder, generate_checked, greedy, make_engine
from octavo.engine import Engine
from octavo.sampling_params import SamplingParams

LOGPROB_TOLERANCE = 1e-4


def assert_equal(got: Recorder, expected: Recorder) -> None:
    """Token for token, with equal ends and log probabilities within the tolerance."""
    assert got.token_ids == expected.token_ids
    assert got.finishes == expected.finishes
    assert len(got.logprobs) == len(expected.logprobs)
    for mine, other in zip(got.logprobs, expected.logprobs, strict=True):
        assert abs(mine.logprob - other.logprob) <= LOGPROB_TOLERANCE
        mine_top, other_top = ([value for _, value in x.top] for x in (mine, other))
        assert all(
            abs(a - b) <= LOGPROB_TOLERANCE for a, b in zip(mine_top, other_top, strict=True)
        )


def assert_close(got: Recorder, expected: Recorder) -> None:
    """At the first mismatch each side's token is in the other's top; what follows it is not
    comparable."""
    pairs = zip(got.token_ids, expected.token_ids, strict=False)
    for index, (mine, other) in enumerate(pairs):
        if mine != other:
            assert mine in [token for token, _ in expected.logprobs[index].top]
            assert other in [token for token, _ in got.logprobs[index].top]
            return
    assert len(got.token_ids) == len(expected.token_ids)


@dataclass
class Case:
    """A model in one type of numbers, prompts that keep it busy, and how to compare."""

    folder: Path
    dtype: str
    prompts: list[list[int]]
    max_tokens: int
    least_distinct: int  # tokens in the most varied output
    compare: Callable[[Recorder, Recorder], None]
    kv_cache_dtype: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)  # further ones, of every engine

    @property
    def params(self) -> SamplingParams:
        return greedy(self.max_tokens, logprobs=5)

    @property
    def longest(self) -> int:
        return max(map(len, self.prompts)) + self.max_tokens

    def engine(self, **settings: Any) -> Engine:
        given = {"max_model_len": self.longest, "num_blocks": 400, **self.settings, **settings}
        formats = {"dtype": self.dtype, "kv_cache_dtype": self.kv_cache_dtype}
        return make_engine(self.folder, **formats, **given)

    def run_alone(self, params: SamplingParams | list[SamplingParams]) -> list[Recorder]:
        """Each prompt by itself, its prefill in one step."""
        engine = self.engine()
        each = [params] * len(self.prompts) if isinstance(params, SamplingParams) else params
        results = [
            generate_checked(engine, [prompt], own)[0]
            for prompt, own in zip(self.prompts, each, strict=True)
        ]
        assert engine.scheduler.counters.prefill_chunks == len(self.prompts)
        assert engine.scheduler.counters.preemptions.total() == 0
        return results

    @cached_property
    def alone(self) -> list[Recorder]:
        results = self.run_alone(self.params)
        # A model that repeats itself would hide what the equivalences look for.
        assert max(len(set(result.token_ids)) for result in results) >= self.least_distinct
        return results

    def assert_as_alone(self, results: list[Recorder]) -> None:
        for got, expected in zip(results, self.alone, strict=True):
            self.compare(got, expected)


# Share of what all sequences at their longest would hold; 0: barely the longest one.
POOLS = [0.0, 0.05, 0.15, 0.3, 0.5, 0.65]


def pool_blocks(case: Case, share: float, block_size: int = 4) -> int:
    lengths = [len(prompt) + case.max_tokens for prompt in case.prompts]
    all_blocks = sum(-(-length // block_size) for length in lengths)
    return max(-(-case.longest // block_size), int(share * all_blocks))
