"""What is asked: prompts and lengths, each request a function of the seed and its number alone.

Prompts are token ids (`input_ids`), drawn at random. Text would be cut into other numbers of
tokens by every model's tokenizer, so that two runs would not carry the same load; ids have exact
lengths everywhere, need no tokenizer here, and share no prefix unless the workload says so. What
they leave out is the server's own tokenizing, which takes well under a millisecond a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

WorkloadName = Literal["chat", "rag", "shared-prefix", "mixed", "cancel"]
WORKLOADS: tuple[WorkloadName, ...] = get_args(WorkloadName)

# Below are special tokens and single bytes in the usual vocabularies.
_FIRST_ID = 300
_SHAPE_STREAM, _PROMPT_STREAM, _PREFIX_STREAM, _SUFFIX_STREAM = range(4)
# Lengths are cut at this many standard deviations, so that the longest is known.
_MAX_DEVIATIONS = 2.0
_PREFIX_SHARE = 0.75
_MIX: tuple[tuple[WorkloadName, float], ...] = (("chat", 0.6), ("rag", 0.2), ("shared-prefix", 0.2))


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean lengths in tokens."""

    input_tokens: int
    output_tokens: int


# Nominal shapes; the first two are guidellm's profiles of these names.
SHAPES: dict[str, Shape] = {
    "chat": Shape(512, 256),
    "rag": Shape(4096, 512),
    "shared-prefix": Shape(1024, 128),
    "cancel": Shape(512, 256),
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request of a run. It asks for exactly `max_tokens` tokens: greedy, no early end."""

    index: int
    workload: str
    input_ids: tuple[int, ...]
    max_tokens: int
    cancel_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings:
    """`input_tokens` and `output_tokens` replace the workload's own mean lengths."""

    name: WorkloadName
    seed: int = 0
    max_model_len: int = 2048
    vocab_size: int = 4096
    input_tokens: int | None = None
    output_tokens: int | None = None
    length_cv: float = 0.25
    num_prefixes: int = 8
    num_suffixes: int = 32
    cancel_ratio: float = 0.2
    cancel_after_s: float = 0.5

    def __post_init__(self) -> None:
        _require("workload", self.name in WORKLOADS, self.name, f"one of {', '.join(WORKLOADS)}")
        _require("max-model-len", self.max_model_len >= 16, self.max_model_len, "at least 16")
        enough = self.vocab_size > _FIRST_ID + 1
        _require("vocab-size", enough, self.vocab_size, f"above {_FIRST_ID + 1}")
        _require("length-cv", 0 <= self.length_cv <= 0.4, self.length_cv, "from 0 to 0.4")
        _require("prefixes", self.num_prefixes >= 1, self.num_prefixes, "at least 1")
        _require("suffixes", self.num_suffixes >= 1, self.num_suffixes, "at least 1")
        _require("cancel-ratio", 0 <= self.cancel_ratio <= 1, self.cancel_ratio, "from 0 to 1")
        _require("cancel-after", self.cancel_after_s > 0, self.cancel_after_s, "above 0 s")
        for option, value in (
            ("input-tokens", self.input_tokens),
            ("output-tokens", self.output_tokens),
        ):
            _require(option, value is None or value >= 1, value, "at least 1")
        for name in self.parts:
            shape = self.shape(name)
            longest = sum(self.longest(mean) for mean in (shape.input_tokens, shape.output_tokens))
            _require(
                "input-tokens and output-tokens",
                longest <= self.max_model_len,
                f"up to {longest} together",
                f"at most max-model-len = {self.max_model_len}",
            )

    @property
    def parts(self) -> Sequence[WorkloadName]:
        """The workloads that this one is made of."""
        return [name for name, _ in _MIX] if self.name == "mixed" else [self.name]

    def shape(self, name: str) -> Shape:
        """Mean lengths of a part: nominal, or shrunk in proportion until the longest request
        fits into the model's context."""
        nominal = SHAPES[name]
        room = self.max_model_len / (1 + _MAX_DEVIATIONS * self.length_cv)
        factor = min(1.0, room / (nominal.input_tokens + nominal.output_tokens))
        scaled = Shape(int(nominal.input_tokens * factor), int(nominal.output_tokens * factor))
        return replace(
            scaled,
            input_tokens=self.input_tokens or max(1, scaled.input_tokens),
            output_tokens=self.output_tokens or max(1, scaled.output_tokens),
        )

    def longest(self, mean: int) -> int:
        return int(mean * (1 + _MAX_DEVIATIONS * self.length_cv))


def _require(option: str, holds: bool, value: object, limit: str) -> None:
    if not holds:
        raise ValueError(f"{option}: got {value}, must be {limit}")


class Workload:
    """The requests of a run, by number: `request(7)` is the same in every process."""

    def __init__(self, settings: WorkloadSettings) -> None:
        self.settings = settings

    def request(self, index: int) -> GenerationRequest:
        settings = self.settings
        generator = self._generator(_SHAPE_STREAM, index)
        name: str = settings.name
        if name == "mixed":
            name = str(generator.choice([n for n, _ in _MIX], p=[share for _, share in _MIX]))
        shape = settings.shape(name)
        input_tokens = self._length(generator, shape.input_tokens)
        output_tokens = self._length(generator, shape.output_tokens)
        if name == "shared-prefix":
            ids = self._shared_prompt(generator, shape.input_tokens)
        else:
            ids = self._ids(_PROMPT_STREAM, index, count=input_tokens)
        if name != "cancel" or generator.random() >= settings.cancel_ratio:
            return GenerationRequest(index, name, ids, output_tokens)
        # As long as the context allows: the cancellation comes first, and well before the end.
        longest = settings.max_model_len - len(ids)
        return GenerationRequest(index, name, ids, longest, settings.cancel_after_s)

    def _shared_prompt(self, generator: np.random.Generator, length: int) -> tuple[int, ...]:
        """One of K prefixes and one of its M suffixes; all have the same length."""
        prefix = int(generator.integers(self.settings.num_prefixes))
        suffix = int(generator.integers(self.settings.num_suffixes))
        shared = max(1, int(length * _PREFIX_SHARE))
        return self._ids(_PREFIX_STREAM, prefix, count=shared) + self._ids(
            _SUFFIX_STREAM, prefix, suffix, count=max(1, length - shared)
        )

    def _length(self, generator: np.random.Generator, mean: int) -> int:
        deviations = np.clip(generator.standard_normal(), -_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        return max(1, int(mean * (1 + self.settings.length_cv * float(deviations))))

    def _ids(self, *stream: int, count: int) -> tuple[int, ...]:
        drawn = self._generator(*stream).integers(_FIRST_ID, self.settings.vocab_size, size=count)
        return tuple(drawn.tolist())

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, *stream])
