"""The HTTP transports: one POST to generate_stream for each generation, on httpx.

Whole answers take that route too, as a stream of one event: it gives what `generate` gives, with
one way to read it.

A generation is cancelled by closing its connection. Triton's HTTP endpoint does not look at a
connection between a request and the first byte of its answer. So a stream that is left while it
waits or prefills goes on to its first token, and an answer that is not streamed to its end. The
deadline that a timeout implies holds all the same. The gRPC transports have no such limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping

import httpx

from . import _http_wire
from ._errors import ServerError
from ._http_call import Call, Connections, client_options
from ._sse import EventParser
from ._tensors import ModelForm
from ._transport import DEADLINE_GRACE_S, GenerationRequest, Response
from ._types import Health

_JSON = {"content-type": "application/json"}


class HttpTransport:
    """Transport over HTTP.

    `url` is that of Triton's HTTP endpoint, http://host:8000, or of a proxy before it: https and
    a path are allowed. `headers` go with every call. `verify` is an SSLContext for a certificate
    that is not public, or False to take any.

    Leaving a stream frees the server at once only when its first text has come; one that is left
    earlier goes on to its first token, and an answer that is not streamed to its end. Give a
    `timeout`, which the server keeps to, or use GrpcTransport, where leaving always counts.

    `trust_env` says whether the environment's HTTP_PROXY, NO_PROXY, SSL_CERT_FILE and the like
    count. Left out, they do unless the server is on this machine.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool | None = None,
    ) -> None:
        self._http = httpx.Client(**client_options(url, headers, verify, trust_env))
        self._connections = Connections()
        self._forms: dict[tuple[str, str], ModelForm] = {}

    def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> Generator[Response, None, None]:
        """See `Transport.stream`.

        Closing the generator closes the connection, which the server sees behind the first byte
        of its answer only.
        """
        self._connections.check_open()
        call = Call(self._connections, timeout, DEADLINE_GRACE_S)
        try:
            with _cut_off_in_time(call):
                yield from self._exchange(request, timeout, call)
        except httpx.HTTPError as exc:
            raise call.error(exc) from exc

    def _exchange(
        self, request: GenerationRequest, timeout: float | None, call: Call
    ) -> Generator[Response, None, None]:
        form = self._form(request, call)
        path = _http_wire.model_path(request.model, request.model_version)
        with self._http.stream(
            "POST",
            f"{path}/generate_stream",
            content=_http_wire.encode_request(request, form, timeout),
            headers=_JSON,
            timeout=call.limits,
            extensions={"trace": call.trace},
        ) as answer:
            call.attach(answer.extensions["network_stream"])
            if answer.status_code != httpx.codes.OK:
                answer.read()
            _check(answer)
            events = EventParser()
            pieces = answer.iter_bytes()
            for piece in pieces:
                messages = _http_wire.parse_events(events.feed(piece))
                if messages and _http_wire.is_terminal(messages[-1]):
                    _drain(pieces)
                for message in messages:
                    yield from _http_wire.decode_message(message)

    def _form(self, request: GenerationRequest, call: Call) -> ModelForm:
        """Which form of the contract the model has; asked until it is known, then remembered."""
        key = (request.model, request.model_version)
        if key not in self._forms:
            answer = self._http.get(
                _http_wire.model_path(*key),
                timeout=call.limits,
                extensions={"trace": call.trace},
            )
            self._forms[key] = _http_wire.model_form(answer)
        return self._forms[key]

    def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        """See `Transport.health`."""
        self._connections.check_open()
        answers = [False, False, False]
        with contextlib.suppress(httpx.HTTPError):
            for i, path in enumerate(_health_paths(model, model_version)):
                answers[i] = self._http.get(path, timeout=timeout).is_success
        return Health(*answers)

    def close(self) -> None:
        """See `Transport.close`."""
        self._connections.close()
        self._http.close()


class AsyncHttpTransport:
    """AsyncTransport over HTTP, with the same arguments as HttpTransport.

    It belongs to the event loop of its first use.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**client_options(url, headers, verify, trust_env))
        self._connections = Connections()
        self._forms: dict[tuple[str, str], ModelForm] = {}

    async def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> AsyncGenerator[Response, None]:
        """See `HttpTransport.stream`."""
        self._connections.check_open()
        call = Call(self._connections, timeout, DEADLINE_GRACE_S)
        try:
            with _cut_off_in_time_by_loop(call):
                async with contextlib.aclosing(self._exchange(request, timeout, call)) as responses:
                    async for response in responses:
                        yield response
        except httpx.HTTPError as exc:
            raise call.error(exc) from exc

    async def _exchange(
        self, request: GenerationRequest, timeout: float | None, call: Call
    ) -> AsyncGenerator[Response, None]:
        form = await self._form(request, call)
        path = _http_wire.model_path(request.model, request.model_version)
        async with self._http.stream(
            "POST",
            f"{path}/generate_stream",
            content=_http_wire.encode_request(request, form, timeout),
            headers=_JSON,
            timeout=call.limits,
            extensions={"trace": call.trace_async},
        ) as answer:
            call.attach(answer.extensions["network_stream"])
            if answer.status_code != httpx.codes.OK:
                await answer.aread()
            _check(answer)
            events = EventParser()
            pieces = answer.aiter_bytes()
            async for piece in pieces:
                messages = _http_wire.parse_events(events.feed(piece))
                if messages and _http_wire.is_terminal(messages[-1]):
                    await _drain_async(pieces)
                for message in messages:
                    for response in _http_wire.decode_message(message):
                        yield response

    async def _form(self, request: GenerationRequest, call: Call) -> ModelForm:
        """See `HttpTransport._form`."""
        key = (request.model, request.model_version)
        if key not in self._forms:
            answer = await self._http.get(
                _http_wire.model_path(*key),
                timeout=call.limits,
                extensions={"trace": call.trace_async},
            )
            self._forms[key] = _http_wire.model_form(answer)
        return self._forms[key]

    async def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        """See `Transport.health`."""
        self._connections.check_open()
        answers = [False, False, False]
        with contextlib.suppress(httpx.HTTPError):
            for i, path in enumerate(_health_paths(model, model_version)):
                answers[i] = (await self._http.get(path, timeout=timeout)).is_success
        return Health(*answers)

    async def close(self) -> None:
        """See `Transport.close`."""
        self._connections.close()
        await self._http.aclose()


@contextlib.contextmanager
def _cut_off_in_time(call: Call) -> Iterator[None]:
    if call.limit_s is None:
        yield
        return
    timer = threading.Timer(call.limit_s, call.cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _cut_off_in_time_by_loop(call: Call) -> Iterator[None]:
    if call.limit_s is None:
        yield
        return
    timer = asyncio.get_running_loop().call_later(call.limit_s, call.cut_off)
    try:
        yield
    finally:
        timer.cancel()


# An answer is read to its end before its last event is given away: closing its connection then
# could still reach Triton as a cancellation, which has crashed it (see _grpc), and would cost the
# next request a new connection.
def _drain(pieces: Iterator[bytes]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        for _ in pieces:
            pass


async def _drain_async(pieces: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        async for _ in pieces:
            pass


def _check(answer: httpx.Response) -> None:
    """Raise the error that an answer is, whose body is read unless its status is 200."""
    if answer.status_code != httpx.codes.OK:
        raise _http_wire.error_from_response(answer)
    content_type = answer.headers.get("content-type", "")
    if not content_type.startswith(_http_wire.EVENT_STREAM):
        raise ServerError(f"the answer's type is {content_type!r}, not an event stream")


def _health_paths(model: str, version: str) -> tuple[str, str, str]:
    return (
        "/v2/health/live",
        "/v2/health/ready",
        f"{_http_wire.model_path(model, version)}/ready",
    )
