"""The synchronous client."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ._assemble import (
    ChunkAssembler,
    Defaults,
    Messages,
    Prompt,
    chat_content,
    join,
    prompt_content,
)
from ._errors import OctavoError
from ._grpc import GrpcTransport
from ._http import HttpTransport
from ._retry import NO_RETRY, Deadline, Retry, pause_before_retry
from ._transport import GenerationRequest, Transport
from ._types import Chunk, Completion, Health, SamplingParameters

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._types import RequestOptions


class Stream(Iterator[Chunk]):
    """The chunks of one generation, which is sent at the first `next()`.

    Leaving it cancels the generation on the server: `close()`, the end of a `with` block, or
    a `break` out of a `for` loop over a stream that no name refers to. A stream belongs to one
    thread. Iterating raises the OctavoError that ends the generation early.
    """

    def __init__(self, chunks: Generator[Chunk, None, None]) -> None:
        self._chunks = chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Cancel the generation if it still runs."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Client:
    """A connection to one model of an Octavo server. Many threads may use it at once.

    `url` is host:port of Triton's gRPC endpoint, or http://host:port of its HTTP endpoint (https
    too; see `HttpTransport` for what differs). `timeout` (seconds, None for no limit) holds for
    calls that do not give their own. `retries` is off unless given. `headers` go with every call.
    `transport` replaces the connection that `url` and `headers` describe, for TLS or tests.

    Every generating method takes a `SamplingParameters`, and as keyword arguments its fields
    and `timeout`, `return_token_ids`, `return_cost`, `request_id` (see `RequestOptions`). Each
    raises `OctavoError`, or TypeError and ValueError for an argument that is wrong on its face.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str = "llm",
        model_version: str = "",
        timeout: float | None = None,
        retries: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._defaults = Defaults(model, model_version, timeout)
        self._retries = retries or NO_RETRY
        self._transport: Transport = transport or _transport_to(url, headers)

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """Complete a prompt, a text or token ids, and wait for the whole answer."""
        return join(list(self._start(prompt_content(prompt), False, sampling, options)))

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """Complete a prompt, chunk by chunk."""
        return Stream(self._start(prompt_content(prompt), True, sampling, options))

    def chat(
        self,
        messages: Messages,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """Answer a conversation and wait for the whole answer.

        `messages` are objects with "role" and "content", the oldest first; the server applies
        the model's chat template.
        """
        return join(list(self._start(chat_content(messages), False, sampling, options)))

    def stream_chat(
        self,
        messages: Messages,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """Answer a conversation, chunk by chunk."""
        return Stream(self._start(chat_content(messages), True, sampling, options))

    def health(self, *, timeout: float | None = 5.0) -> Health:
        """The state of the server and the model; does not raise when there is no server."""
        defaults = self._defaults
        return self._transport.health(defaults.model, defaults.model_version, timeout)

    def close(self) -> None:
        """Release the connection; running generations raise RequestCancelledError."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(
        self,
        content: Mapping[str, object],
        stream: bool,
        sampling: SamplingParameters | None,
        options: RequestOptions,
    ) -> Generator[Chunk, None, None]:
        # Not a generator itself, so that a wrong argument raises here and not at the first next().
        return self._run(
            *self._defaults.request(content, stream=stream, sampling=sampling, options=options)
        )

    def _run(
        self, request: GenerationRequest, timeout: float | None
    ) -> Generator[Chunk, None, None]:
        deadline = Deadline.after(timeout)
        attempt = 0
        while True:
            attempt += 1
            answer = ChunkAssembler(request)
            try:
                remaining = deadline.remaining()
                with contextlib.closing(self._transport.stream(request, remaining)) as responses:
                    for response in responses:
                        if chunk := answer.add(response):
                            yield chunk
                answer.finish()
                return
            except OctavoError as exc:
                pause = pause_before_retry(
                    self._retries, exc, attempt=attempt, started=answer.started, deadline=deadline
                )
                if pause is None:
                    raise
            self._retries.sleep(pause)


def _transport_to(url: str, headers: Mapping[str, str] | None) -> Transport:
    if "://" in url:
        return HttpTransport(url, headers=headers)
    return GrpcTransport(url, headers=headers)
