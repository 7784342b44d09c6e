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

    n: int | None = None
    """So many answers to the same prompt; each is a Choice."""
    temperature: float | None = None
    """0 is greedy; higher is more random."""
    top_p: float | None = None
    """Choose among the likeliest tokens whose probabilities sum to this (0-1]."""
    top_k: int | None = None
    """Choose among this many likeliest tokens."""
    min_p: float | None = None
    """Choose among tokens at least this fraction as likely as the likeliest [0-1]."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the answer already holds."""
    frequency_penalty: float | None = None
    """Subtracted once for each time that the answer already holds the token."""
    repetition_penalty: float | None = None
    """Above 1, tokens of the prompt and the answer become less likely: a positive logit is
    divided by it, a negative one multiplied."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these token ids; -100 all but bans, 100 all but forces."""
    allowed_token_ids: Sequence[int] | None = None
    """Choose among these tokens only."""
    bad_words: str | Sequence[str] | None = None
    """Never make any of these texts."""
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens."""
    max_tokens: int | None = None
    """At most this many new tokens. The server's default is small (16)."""
    min_tokens: int | None = None
    """No end of sequence before this many new tokens."""
    stop: str | Sequence[str] | None = None
    """End before any of these texts."""
    include_stop_str_in_output: bool | None = None
    """End behind the stop text instead."""
    stop_token_ids: Sequence[int] | None = None
    """End at any of these tokens."""
    ignore_eos: bool | None = None
    """Go on after the model's own end-of-sequence token."""
    logprobs: int | None = None
    """Also return the log-probabilities of this many likeliest tokens at each position."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt."""
    skip_special_tokens: bool | None = None
    """False leaves special tokens in the text."""
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
            if field.name in _LISTS:
                value = [value] if isinstance(value, str) else list(value)
            elif field.name == "logit_bias":
                value = {str(token_id): bias for token_id, bias in value.items()}
            wire[field.name] = value
        return wire


_LISTS = frozenset({"stop", "stop_token_ids", "bad_words", "allowed_token_ids"})


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParameters as keyword arguments."""

    n: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    bad_words: str | Sequence[str] | None
    seed: int | None
    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    include_stop_str_in_output: bool | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    skip_special_tokens: bool | None
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
    return_cost: bool
    """Fill `cost`. Servers that know no receipts refuse it."""
    request_id: str
    """Appears in the server's log and traces."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """How many of the prompt's tokens were found in the prefix cache; None if the server does not
    tell."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The receipt of one generation, all its choices together. Dollars are None where the server
    has no price. Idle time is in no receipt: sums over receipts stay below the server's bill."""

    usd: float | None
    """What the server's steps for this request cost: prefill and decode."""
    prefill_usd: float | None
    decode_usd: float | None
    prefill_s: float
    """Its share of the steps' time, in seconds."""
    decode_s: float
    cached_tokens: int
    saved_usd: float | None
    """What the cached tokens saved; less `held_usd` is the net."""
    saved_s: float
    held_usd: float | None
    """What it cost to keep them while nobody used them."""
    held_s: float
    queue_s: float
    """Received by the model to first computed step."""
    price_usd_per_hour: float | None
    price_as_of: str | None
    """The day (ISO 8601) on which that price held."""


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

PromptLogprobs = tuple[TokenLogprobs | None, ...]
"""One entry for each token of the prompt. The first is None: nothing comes before it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one choice. The last of a choice carries its `finish_reason`, and maybe no text;
    the last of all carries `usage` too."""

    text: str
    token_ids: tuple[int, ...] | None = None
    """The new tokens, if asked for."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One entry for each new token, if asked for."""
    cumulative_logprob: float | None = None
    """Sum over all tokens of the choice so far, if logprobs were asked for."""
    finish_reason: str | None = None
    """None except in the last chunk of the choice, where it is as in Choice."""
    usage: Usage | None = None
    index: int = 0
    """Which choice this belongs to, from 0 to n - 1."""
    prompt_logprobs: PromptLogprobs | None = None
    """In the first chunk, if asked for."""
    cost: Cost | None = None
    """In the last chunk of all, if asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer to the prompt."""

    text: str
    finish_reason: str
    """Why it ended: "stop" (an end token or a stop text), "length" (max_tokens or the context)."""
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """All that came back. Unless `n` was set there is one choice, and `text` and the others below
    are its fields; with more they are those of the first."""

    choices: tuple[Choice, ...]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    cost: Cost | None = None
    """If asked for."""

    @property
    def text(self) -> str:
        """See `Choice`."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """See `Choice`."""
        return self.choices[0].finish_reason

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        """See `Choice`."""
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """See `Choice`."""
        return self.choices[0].logprobs

    @property
    def cumulative_logprob(self) -> float | None:
        """See `Choice`."""
        return self.choices[0].cumulative_logprob


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
