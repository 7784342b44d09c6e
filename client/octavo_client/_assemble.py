"""From arguments to a request and from responses to chunks: what both clients share."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, cast

from ._errors import ServerError
from ._transport import GenerationRequest, Response
from ._types import Choice, Chunk, Completion, RequestOptions, SamplingParameters, Usage

Prompt = str | Sequence[int]
"""A text, or token ids."""

Messages = Sequence[Mapping[str, object]]
"""A conversation: objects with "role" and "content", the oldest first."""

_SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParameters))


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a client fills in where a call says nothing."""

    model: str
    model_version: str
    timeout: float | None

    def __post_init__(self) -> None:
        check_timeout(self.timeout)

    def request(
        self,
        content: Mapping[str, Any],
        *,
        stream: bool,
        sampling: SamplingParameters | None,
        options: RequestOptions,
    ) -> tuple[GenerationRequest, float | None]:
        """The request for `content`, one of the inputs of GenerationRequest, and its timeout."""
        given = cast("dict[str, Any]", dict(options))
        timeout = given.pop("timeout", self.timeout)
        check_timeout(timeout)
        chosen = {name: given.pop(name) for name in tuple(given) if name in _SAMPLING_FIELDS}
        request = GenerationRequest(
            model=self.model,
            model_version=self.model_version,
            sampling=replace(sampling or SamplingParameters(), **chosen),
            stream=stream,
            return_token_ids=given.pop("return_token_ids", False),
            return_cost=given.pop("return_cost", False),
            request_id=given.pop("request_id", ""),
            **content,
        )
        if given:
            raise TypeError(f"unknown argument {next(iter(given))!r}")
        return request, timeout


def check_timeout(timeout: float | None) -> None:
    """Raise ValueError unless it is None or a positive number of seconds."""
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"timeout is {timeout}; must be a positive number of seconds, or None")


def prompt_content(prompt: Prompt) -> dict[str, Any]:
    """The input of a plain generation; raises TypeError and ValueError for ids that are none."""
    if isinstance(prompt, str):
        return {"text": prompt}
    input_ids = tuple(operator.index(token_id) for token_id in prompt)
    for position, token_id in enumerate(input_ids):
        if not -(2**31) <= token_id < 2**31:
            raise ValueError(f"prompt[{position}] is {token_id}; a token id has 32 bits")
    return {"input_ids": input_ids}


def chat_content(messages: Messages) -> dict[str, Any]:
    """The input of a chat."""
    return {"messages": tuple(messages)}


class ChunkAssembler:
    """Turns the responses of one call into chunks and adds up its token counts."""

    def __init__(self, request: GenerationRequest) -> None:
        self.started = False
        """Something of the answer has arrived, so it cannot be asked for again."""
        self._num_choices = request.sampling.n or 1
        self._ended: set[int] = set()
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens: int | None = None

    def add(self, response: Response) -> Chunk | None:
        """The chunk in a response; None if it has nothing new."""
        if response.index in self._ended or response.is_empty:
            return None
        self.started = True
        self._prompt_tokens = response.num_input_tokens or self._prompt_tokens
        self._completion_tokens += response.num_output_tokens or 0
        if response.cached_tokens is not None:
            self._cached_tokens = response.cached_tokens
        if response.finish_reason is not None:
            self._ended.add(response.index)
        return Chunk(
            text=response.text,
            token_ids=response.token_ids,
            logprobs=response.logprobs,
            cumulative_logprob=response.cumulative_logprob,
            finish_reason=response.finish_reason,
            usage=self._usage() if self._is_finished else None,
            index=response.index,
            prompt_logprobs=response.prompt_logprobs,
            cost=response.cost if self._is_finished else None,
        )

    @property
    def _is_finished(self) -> bool:
        return len(self._ended) == self._num_choices

    def _usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens)

    def finish(self) -> None:
        """The stream is over. A cut-off answer must not look like a whole one: ServerError."""
        if not self._is_finished:
            raise ServerError("the stream ended without a finish reason: the answer is incomplete")


def join(chunks: Sequence[Chunk]) -> Completion:
    """The whole answer."""
    usage = chunks[-1].usage
    assert usage is not None
    by_choice: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        by_choice.setdefault(chunk.index, []).append(chunk)
    return Completion(
        choices=tuple(_join_choice(by_choice[index]) for index in sorted(by_choice)),
        usage=usage,
        prompt_logprobs=next((c.prompt_logprobs for c in chunks if c.prompt_logprobs), None),
        cost=chunks[-1].cost,
    )


def _join_choice(chunks: Sequence[Chunk]) -> Choice:
    last = chunks[-1]
    assert last.finish_reason is not None
    token_ids = [chunk.token_ids for chunk in chunks if chunk.token_ids is not None]
    logprobs = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    return Choice(
        text="".join(chunk.text for chunk in chunks),
        finish_reason=last.finish_reason,
        token_ids=tuple(chain.from_iterable(token_ids)) if token_ids else None,
        logprobs=tuple(chain.from_iterable(logprobs)) if logprobs else None,
        cumulative_logprob=last.cumulative_logprob,
    )
