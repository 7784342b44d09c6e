"""The gRPC transports: one channel for each, one ModelStreamInfer call for each generation.

tritonclient's own client object allows one open stream at a time; the generated stubs have no
such limit, so many threads or tasks share a channel here.

Nothing of gRPC runs in a thread of the user's while a stream is read: an exception that a signal
handler raises (Ctrl-C is one) within gRPC's Python code can leave a lock of the channel taken, and
then every later call of the channel waits for ever. Each stream has a thread that reads it.

The header `triton_grpc_error: true` would end a stream with a status instead of a text. It is
not sent: with it, an error that follows a response, or that comes before the final flag, ends
Triton 24.10 with a segmentation fault (seen within 60 such errors on 4 streams).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import grpc
import grpc.aio
from grpc.experimental import ChannelOptions
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from . import _grpc_wire
from ._errors import (
    OctavoError,
    RequestCancelledError,
    RequestTimeoutError,
    error_from_status,
)
from ._tensors import ModelForm
from ._transport import DEADLINE_GRACE_S, GenerationRequest, Response
from ._types import Health

_CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own limit is 120 s: too long to notice that a restarted server is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class GrpcTransport:
    """Transport over gRPC.

    `url` is host:port of Triton's gRPC endpoint. `headers` go with every call; with
    `credentials` (`grpc.ssl_channel_credentials()`) the connection is encrypted.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        _check_url(url)
        self._headers = _metadata(headers)
        # The reading thread waits for the network itself: no second thread of gRPC's in between.
        options = (*_CHANNEL_OPTIONS, (ChannelOptions.SingleThreadedUnaryStream, 1))
        self._channel = (
            grpc.secure_channel(url, credentials, options)
            if credentials
            else grpc.insecure_channel(url, options)
        )
        self._stub = GRPCInferenceServiceStub(self._channel)
        # The call streams both ways and a generation is one message, which looks the same on the
        # wire as a unary request; gRPC needs no thread to send that.
        self._stream_infer = self._channel.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self._forms: dict[tuple[str, str], ModelForm] = {}
        self._closed = False

    def _connected(self) -> Any:
        if self._closed:
            raise RuntimeError("the client is closed")
        return self._stub

    def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> Generator[Response, None, None]:
        """See `Transport.stream`."""
        stub = self._connected()

        def start() -> Any:
            form = self._form(stub, request, timeout)
            message = _grpc_wire.encode_request(request, form, timeout)
            return self._stream_infer(message, timeout=_with_grace(timeout), metadata=self._headers)

        reader = _StreamReader(start)
        try:
            for received in reader:
                yield from _grpc_wire.decode_response(received)
        except grpc.RpcError as exc:
            raise _error_from_rpc(exc, timeout) from exc
        finally:
            reader.cancel()

    def _form(self, stub: Any, request: GenerationRequest, timeout: float | None) -> ModelForm:
        """Which form of the contract the model has; asked until it is known, then remembered."""
        key = (request.model, request.model_version)
        if key not in self._forms:
            query = _metadata_query(request)
            answer = stub.ModelMetadata(query, timeout=timeout, metadata=self._headers)
            self._forms[key] = _grpc_wire.model_form(answer)
        return self._forms[key]

    def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        """See `Transport.health`."""
        stub = self._connected()
        live = ready = model_ready = False
        options: dict[str, Any] = {"timeout": timeout, "metadata": self._headers}
        with contextlib.suppress(grpc.RpcError):
            live = stub.ServerLive(service_pb2.ServerLiveRequest(), **options).live
            ready = stub.ServerReady(service_pb2.ServerReadyRequest(), **options).ready
            query = service_pb2.ModelReadyRequest(name=model, version=model_version)
            model_ready = stub.ModelReady(query, **options).ready
        return Health(live, ready, model_ready)

    def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        self._channel.close()


class AsyncGrpcTransport:
    """AsyncTransport over gRPC, with the same arguments as GrpcTransport.

    It connects at its first use and belongs to the event loop of that use.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        _check_url(url)
        self._url = url
        self._headers = _metadata(headers)
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._forms: dict[tuple[str, str], ModelForm] = {}
        self._closed = False

    def _connected(self) -> Any:
        # An aio channel binds itself to the running loop, which __init__ need not have.
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._channel is None:
            self._channel = (
                grpc.aio.secure_channel(self._url, self._credentials, _CHANNEL_OPTIONS)
                if self._credentials
                else grpc.aio.insecure_channel(self._url, _CHANNEL_OPTIONS)
            )
            self._stub = GRPCInferenceServiceStub(self._channel)
        return self._stub

    async def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> AsyncGenerator[Response, None]:
        """See `Transport.stream`."""
        stub = self._connected()
        call = None
        try:
            form = await self._form(stub, request, timeout)
            message = _grpc_wire.encode_request(request, form, timeout)
            call = stub.ModelStreamInfer(
                iter((message,)), timeout=_with_grace(timeout), metadata=self._headers
            )
            async for received in call:
                if _grpc_wire.is_terminal(received):
                    await _drain_async(call)
                for response in _grpc_wire.decode_response(received):
                    yield response
        except grpc.RpcError as exc:
            raise _error_from_rpc(exc, timeout) from exc
        except asyncio.CancelledError as exc:
            # A closing channel raises it too, in tasks that nobody has cancelled.
            if not self._closed:
                raise
            raise RequestCancelledError("the client was closed", status="CANCELLED") from exc
        finally:
            if call is not None:
                call.cancel()

    async def _form(
        self, stub: Any, request: GenerationRequest, timeout: float | None
    ) -> ModelForm:
        """See `GrpcTransport._form`."""
        key = (request.model, request.model_version)
        if key not in self._forms:
            query = _metadata_query(request)
            answer = await stub.ModelMetadata(query, timeout=timeout, metadata=self._headers)
            self._forms[key] = _grpc_wire.model_form(answer)
        return self._forms[key]

    async def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        """See `Transport.health`."""
        stub = self._connected()
        live = ready = model_ready = False
        options: dict[str, Any] = {"timeout": timeout, "metadata": self._headers}
        with contextlib.suppress(grpc.RpcError):
            live = (await stub.ServerLive(service_pb2.ServerLiveRequest(), **options)).live
            ready = (await stub.ServerReady(service_pb2.ServerReadyRequest(), **options)).ready
            query = service_pb2.ModelReadyRequest(name=model, version=model_version)
            model_ready = (await stub.ModelReady(query, **options)).ready
        return Health(live, ready, model_ready)

    async def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


class _StreamReader:
    """Reads a call in a thread of its own; iterating gives what it receives.

    `start()` starts the call, in that thread; what it or the call raises, iterating raises.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._call: Any = None
        self._cancelled = False
        # Its get() is written in C: a signal meets it before or after, never within.
        self._received: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread = Thread(target=self._read, name="octavo-stream", daemon=True)

    def __iter__(self) -> Iterator[Any]:
        self._thread.start()
        while True:
            message, error = self._received.get()
            if error is not None:
                raise error
            if message is None:
                return
            yield message

    def cancel(self) -> None:
        """End the call if it still runs."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def _read(self) -> None:
        error = None
        try:
            self._call = self._start()
            # cancel() may have come before there was a call: each looks after it has written.
            if self._cancelled:
                self._call.cancel()
            for message in self._call:
                if _grpc_wire.is_terminal(message):
                    _drain(self._call)
                self._received.put((message, None))
        except BaseException as exc:
            error = exc
        self._received.put((None, error))


# A call is read to its end before its last response is given away: a cancellation that meets the
# end of its stream within about a millisecond has crashed Triton 24.10, and it cancels nothing.
def _drain(call: Any) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass


async def _drain_async(call: Any) -> None:
    with contextlib.suppress(grpc.RpcError):
        async for _ in call:
            pass


def _check_url(url: str) -> None:
    if "://" in url or not url:
        raise ValueError(f"url is {url!r}; must be host:port of Triton's gRPC endpoint (8001)")


def _metadata(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in (headers or {}).items())


def _metadata_query(request: GenerationRequest) -> Any:
    return service_pb2.ModelMetadataRequest(name=request.model, version=request.model_version)


def _with_grace(timeout: float | None) -> float | None:
    return None if timeout is None else timeout + DEADLINE_GRACE_S


def _error_from_rpc(exc: Any, timeout: float | None) -> OctavoError:
    """`exc` is the RpcError of a call, which always has code() and details()."""
    code = exc.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout is not None:
        return RequestTimeoutError(f"no whole answer within {timeout:.3g} s", status=code.name)
    return error_from_status(code.name if code is not None else None, exc.details() or "")
