"""What goes into the engine and what comes out: requests, and outputs token by token."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.accounts import Account
from octavo.execution.logprobs import TokenLogprobs
from octavo.sampling_params import SamplingParams
from octavo.scheduling.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class PromptOutput:
    """What became known of a prompt. `logprobs` are of its second token and all after it."""

    num_cached_tokens: int
    logprobs: list[TokenLogprobs] | None
    account: Account  # of the request, whose steps go on being booked there


@dataclass(slots=True)
class TokenOutput:
    """One token of one of a request's n sequences, or the sequence's end, or both. `token_id` is
    None if the end came from outside: a cancellation, a deadline, a fault.

    Nobody changes it, but frozen it would take four times as long to make, once for each token.
    """

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    index: int = 0  # of the sequence among the n
    prompt: PromptOutput | None = None  # with the request's first token


# Called by the stepping thread, so it must only hand the output on.
Sink = Callable[[TokenOutput], None]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """`arrival_s` is on time.monotonic's clock; deadline and order count from it. `bad_words`
    are those of `params`, as token ids."""

    prompt_token_ids: list[int]
    params: SamplingParams
    sink: Sink
    arrival_s: float = field(default_factory=time.monotonic)
    request_id: int = field(default_factory=itertools.count().__next__)  # the process's own
    bad_words: tuple[tuple[int, ...], ...] = ()


@dataclass(slots=True)
class GenerationResult:
    """What `generate` collects of one prompt."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, output: TokenOutput) -> None:
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
            self.logprobs.append(output.logprobs)
        self.finish_reason = output.finish_reason
