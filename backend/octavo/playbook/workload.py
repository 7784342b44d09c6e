"""What is asked of every stage: a function of name, seed, users and number alone.

Prompts are token ids, drawn at random: they have exact lengths with every model and share nothing
but what the workload says. Lengths are log-normal, as those of chats are, and cut at a longest one:
that is what a server has to be ready for, and what contiguous KV memory reserves.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from octavo.errors import ConfigError

# Away from both ends of a vocabulary, where special tokens are; of a small one all.
_FIRST_ID, _LAST_IDS, _SMALL_VOCABULARY = 300, 64, 2048


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens: mean and coefficient of variation before the cut, and where it is cut."""

    mean: int
    variation: float
    shortest: int
    longest: int

    def draw(self, generator: random.Random) -> int:
        sigma = math.sqrt(math.log(1 + self.variation**2))
        drawn = generator.lognormvariate(math.log(self.mean) - sigma**2 / 2, sigma)
        return min(max(round(drawn), self.shortest), self.longest)

    def scaled(self, factor: float) -> Lengths:
        def at_least(tokens: int, least: int) -> int:
            return max(least, int(tokens * factor))

        return Lengths(
            at_least(self.mean, 2),
            self.variation,
            at_least(self.shortest, 2),
            at_least(self.longest, 2),
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """beginnings: how many there are, each of `shared_tokens`, that prompts begin with."""

    name: str
    title: str
    beginnings: int
    shared_tokens: int
    own: Lengths
    output: Lengths

    @property
    def longest_tokens(self) -> int:
        return self.shared_tokens + self.own.longest + self.output.longest

    def fitted(self, max_tokens: int) -> Workload:
        """Shrunk in proportion until the longest request has room. Raises ConfigError."""
        factor = min(1.0, max_tokens / self.longest_tokens)
        own, output = self.own.scaled(factor), self.output.scaled(factor)
        shared = int(self.shared_tokens * factor)
        fitted = Workload(self.name, self.title, self.beginnings, shared, own, output)
        if fitted.longest_tokens > max_tokens:
            raise ConfigError(
                f"--context = {max_tokens}: the shortest requests of --workload {self.name} take "
                f"{fitted.longest_tokens} tokens"
            )
        return fitted

    def requests(self, seed: int, users: int, count: int, vocab_size: int) -> list[Request]:
        """Of a load of so many users; number -1 is what warms an engine up."""
        return [self.request(seed, users, number, vocab_size) for number in range(count)]

    def request(self, seed: int, users: int, number: int, vocab_size: int) -> Request:
        generator = random.Random(f"{self.name}/{seed}/{users}/{number}")
        beginning = generator.randrange(self.beginnings) if self.beginnings else 0
        head = _ids(
            random.Random(f"{self.name}/{seed}/{beginning}"), self.shared_tokens, vocab_size
        )
        own = _ids(generator, self.own.draw(generator), vocab_size)
        return Request(tuple(head + own), self.output.draw(generator))


@dataclass(frozen=True, slots=True)
class Request:
    """Exactly `output_tokens` are asked for: greedy, and the end of sequence is ignored."""

    prompt: tuple[int, ...]
    output_tokens: int


def _ids(generator: random.Random, count: int, vocab_size: int) -> list[int]:
    first, end = _FIRST_ID, vocab_size - _LAST_IDS
    if vocab_size < _SMALL_VOCABULARY:
        first, end = 0, vocab_size
    return [generator.randrange(first, end) for _ in range(count)]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "chat",
            "a system prompt that all chats have in common, a user's turn, an answer",
            beginnings=1,
            shared_tokens=384,
            own=Lengths(128, 0.7, 16, 384),
            output=Lengths(160, 0.8, 16, 512),
        ),
        Workload(
            "rag",
            "one of four documents, a question about it, a short answer",
            beginnings=4,
            shared_tokens=1024,
            own=Lengths(48, 0.5, 16, 128),
            output=Lengths(96, 0.6, 16, 256),
        ),
        Workload(
            "distinct",
            "prompts that have nothing in common",
            beginnings=0,
            shared_tokens=0,
            own=Lengths(384, 0.7, 32, 1024),
            output=Lengths(160, 0.8, 16, 512),
        ),
    )
}
