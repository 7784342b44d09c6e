"""What callers give and get: sampling parameters, chunks, completions, usage, health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypedDict


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How to choose the next tokens. Only fields that are set are sent; the server's defaults rule.

    The server checks the values: a bad one raises InvalidRequestError. Each field may also be
    given as a keyword argument of `generate()`, `stream()`, `chat()` and `stream_chat()`, where
    it wins over the one here.
    """

    temperature: float | None = None
    """0 is greedy; higher is more random."""
    top_p: float | None = None
    """Choose among the likeliest tokens whose probabilities sum to this (0-1]."""
    top_k: int | None = None
    """Choose among this many likeliest tokens."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens."""
    max_tokens: int | None = None
    """At most this many new tokens. The server's default is small (16)."""
    min_tokens: int | None = None
    """No end of sequence before this many new tokens."""
    stop: str | Sequence[str] | None = None
    """End before any of these texts."""
    stop_token_ids: Sequence[int] | None = None
    """End at any of these tokens."""
    ignore_eos: bool | None = None
    """Go on after the model's own end-of-sequence token."""
    logprobs: int | None = None
    """Also return the log-probabilities of this many likeliest tokens at each position."""
    priority: int | None = None
    """1 is the highest. It orders both Triton's queue and the engine."""
    deadline_ms: int | None = None
    """The server gives up after this many milliseconds. `timeout` sets it; set it here only to
    give the server another limit than the client."""
    tenant: str | None = None
    """Whom the request is accounted to; prefixes are shared only within a tenant."""
    cache: bool | None = None
    """False keeps the prompt out of the prefix cache."""

    def to_wire(self) -> dict[str, object]:
        """The fields that are set, as the server's JSON object has them."""
        wire: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name == "stop" and isinstance(value, str):
                value = [value]
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            wire[field.name] = list(value) if is_list else value
        return wire


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParameters as keyword arguments."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    priority: int | None
    deadline_ms: int | None
    tenant: str | None
    cache: bool | None


class RequestOptions(SamplingOptions, total=False):
    """Keyword arguments of every generating method, beside the sampling parameters."""

    timeout: float | None
    """Seconds for the whole call, retries included; None waits without limit. Left out, the
    client's `timeout` holds."""
    return_token_ids: bool
    """Fill `token_ids`."""
    request_id: str
    """Appears in the server's log and traces."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate token at one position."""

    logprob: float
    """Natural logarithm of its probability."""
    rank: int | None
    """1 is the likeliest."""
    decoded_token: str | None


TokenLogprobs = Mapping[int, Logprob]
"""The candidates at one position by token id: the chosen token and the likeliest ones."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries `finish_reason` and `usage`, and maybe no text."""

    text: str
    token_ids: tuple[int, ...] | None = None
    """The new tokens, if asked for."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One entry for each new token, if asked for."""
    cumulative_logprob: float | None = None
    """Sum over all tokens so far, if logprobs were asked for."""
    finish_reason: str | None = None
    """None except in the last chunk, where it is as in Completion."""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: str
    """Why it ended: "stop" (an end token or a stop text), "length" (max_tokens or the context)."""
    usage: Usage
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What the server says about itself; all False when it cannot be reached.

    Triton calls a model ready that is loaded. Servers before 26.04 go on saying so when the
    model's process has died: to be sure, generate one token.
    """

    live: bool
    """The server answers."""
    ready: bool
    """The server is ready for inference."""
    model_ready: bool
    """The client's model is loaded."""

    @property
    def ok(self) -> bool:
        """All three."""
        return self.live and self.ready and self.model_ready
