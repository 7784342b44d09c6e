"""`octavo profile`: what is asked for, and what is found: plain numbers, which go through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import ConfigError

# By phase, what was found of it; the names are JSON's.
Result = dict[str, Any]

DEFINITIONS = {
    "time": "mean over the middle half of the recorded steps (prefill: of whole prefills) by "
    "duration, so that the parts of a step sum to it",
    "bytes": "what must move between memory and the processor: weights once a step, keys and "
    "values read and written; activations stay in caches",
    "FLOPs": "what must be computed: products and attention; a multiply-add is two",
    "% of read peak": "bytes / time / the read bandwidth that this run measured",
    "% of roof": "the longer of bytes / read bandwidth and FLOPs / matrix rate, over the time; "
    "above 100 where data come from caches",
    "MBU": "bytes of the step / its time / the measured read bandwidth",
    "MFU": "FLOPs of the step / its time / the measured matrix rate of its format",
}
MOST_STEPS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As asked for. `settings` are fields of EngineConfig as text."""

    model: str | None = None
    batch: int = 8
    context: int = 256
    prompt: int = 256
    steps: int = 64
    prefills: int = 9
    trace: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ConfigError naming option, value and limit."""
        for name, least, most in (
            ("batch", 1, 4096), ("context", 1, 2**24), ("prompt", 1, 2**24),
            ("steps", 8, MOST_STEPS), ("prefills", 3, MOST_STEPS),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"--{name} = {value}: should be {least} to {most}")
        if "max_num_seqs" in self.settings:
            raise ConfigError("--set max_num_seqs: it is --batch here; leave it out")

    def sequences(self, budget: int) -> Sequences:
        """That are decoded, in an engine that computes `budget` tokens a step."""
        # The first ones decode while the last are prefilled, and so are as many tokens ahead.
        spread = -(-self.batch * self.context // max(budget - self.batch + 1, 1)) + 1
        first = max(self.context - (self.steps + spread) // 2, 1)
        return Sequences(first, spread + self.steps + WARM_UP_STEPS + 2)

    def check_fits(self, max_model_len: int, budget: int) -> int:
        """Tokens of the longest sequence that is measured. Raises ConfigError if a context does
        not hold it."""
        if self.prompt + 1 > max_model_len:
            raise ConfigError(
                f"--prompt = {self.prompt}: the context holds {max_model_len} tokens, so at most "
                f"{max_model_len - 1}"
            )
        own = self.sequences(budget)
        longest = own.prompt_tokens + own.output_tokens
        if longest > max_model_len:
            raise ConfigError(
                f"--context = {self.context}: with {self.steps} steps around it a sequence of "
                f"{longest} tokens, and the context holds {max_model_len}; lower --context, "
                "--steps or --batch"
            )
        return max(longest, self.prompt + 1)


@dataclass(frozen=True, slots=True)
class Sequences:
    """Of each its prompt, and tokens for every step until the last one has been measured."""

    prompt_tokens: int
    output_tokens: int


WARM_UP_STEPS = 4
