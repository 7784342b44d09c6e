"""The client for asyncio: the same surface as Client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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
from ._grpc import AsyncGrpcTransport
from ._http import AsyncHttpTransport
from ._retry import NO_RETRY, Deadline, Retry, pause_before_retry
from ._transport import AsyncTransport, GenerationRequest
from ._types import Chunk, Completion, Health, SamplingParameters

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._types import RequestOptions


class AsyncStream(AsyncIterator[Chunk]):
    """The chunks of one generation, which is sent at the first `__anext__()`.

    Leaving it cancels the generation on the server: `aclose()`, the end of an `async with`
    block, the cancellation of the task that waits for a chunk, or a `break` out of an
    `async for` loop over a stream that no name refers to.
    """

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._chunks = chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Cancel the generation if it still runs."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncClient:
    """A connection to one model of an Octavo server, for the tasks of one event loop.

    The arguments and methods are those of `Client`.
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
        transport: AsyncTransport | None = None,
    ) -> None:
        self._defaults = Defaults(model, model_version, timeout)
        self._retries = retries or NO_RETRY
        self._transport: AsyncTransport = transport or _transport_to(url, headers)

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """See `Client.generate`."""
        chunks = self._start(prompt_content(prompt), False, sampling, options)
        return join([chunk async for chunk in chunks])

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """See `Client.stream`."""
        return AsyncStream(self._start(prompt_content(prompt), True, sampling, options))

    async def chat(
        self,
        messages: Messages,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """See `Client.chat`."""
        chunks = self._start(chat_content(messages), False, sampling, options)
        return join([chunk async for chunk in chunks])

    def stream_chat(
        self,
        messages: Messages,
        sampling: SamplingParameters | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """See `Client.stream_chat`."""
        return AsyncStream(self._start(chat_content(messages), True, sampling, options))

    async def health(self, *, timeout: float | None = 5.0) -> Health:
        """See `Client.health`."""
        defaults = self._defaults
        return await self._transport.health(defaults.model, defaults.model_version, timeout)

    async def close(self) -> None:
        """See `Client.close`."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _start(
        self,
        content: Mapping[str, object],
        stream: bool,
        sampling: SamplingParameters | None,
        options: RequestOptions,
    ) -> AsyncGenerator[Chunk, None]:
        return self._run(
            *self._defaults.request(content, stream=stream, sampling=sampling, options=options)
        )

    async def _run(
        self, request: GenerationRequest, timeout: float | None
    ) -> AsyncGenerator[Chunk, None]:
        deadline = Deadline.after(timeout)
        attempt = 0
        while True:
            attempt += 1
            answer = ChunkAssembler(request)
            try:
                responses = self._transport.stream(request, deadline.remaining())
                async with contextlib.aclosing(responses):
                    async for response in responses:
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
            await self._retries.async_sleep(pause)


def _transport_to(url: str, headers: Mapping[str, str] | None) -> AsyncTransport:
    if "://" in url:
        return AsyncHttpTransport(url, headers=headers)
    return AsyncGrpcTransport(url, headers=headers)
