"""Streams of a Triton server under gevent: gRPC's ModelStreamInfer and HTTP's generate_stream.

Both stamp an output the moment it is read, before it is decoded. The encoding is this file's
own and not octavo_client's: a measuring tool must not change with what it measures, and must
have everything encoded before its clock starts.
"""

from __future__ import annotations

import http.client
import json
import struct
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from loadtest.workloads import GenerationRequest

_RETURNED = ("finish_reason", "num_input_tokens", "num_output_tokens")
_CACHED_TOKENS = "cached_tokens"
_CONNECT_TIMEOUT_S = 10.0


class StreamError(Exception):
    """The server or the network failed a request."""


@dataclass(frozen=True, slots=True)
class Output:
    """One response that carries text, tokens or a finish reason, and when it was read."""

    at_ns: int
    has_text: bool
    num_tokens: int
    finish_reason: str | None
    input_tokens: int | None
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Contract:
    """What the model's metadata say of its tensors."""

    batched: bool
    """Shapes are [1, n] and not [n]."""
    cached_tokens: bool
    """It can tell how much of a prompt came from the prefix cache."""

    @property
    def returned(self) -> tuple[str, ...]:
        return (*_RETURNED, _CACHED_TOKENS) if self.cached_tokens else _RETURNED


class Streams(Protocol):
    """Requests to one server, many at once."""

    def encode(self, request: GenerationRequest) -> Any:
        """All that can be done long before the request is sent."""
        ...

    def outputs(self, encoded: Any, on_send: Callable[[], None]) -> Generator[Output, None, None]:
        """At the first `next()` calls `on_send`, when there is nothing left to do but to send,
        and sends; closing the generator cancels. Raises StreamError."""
        ...

    def close(self) -> None:
        """Releases the connections."""
        ...


class GrpcStreams:
    """ModelStreamInfer calls over a few connections, opened beforehand and used in turn.

    `grpc.experimental.gevent.init_gevent()` must have been called: gRPC's core is not Python,
    so that one waiting call would hold up all greenlets.
    """

    def __init__(self, address: str, model: str, connections: int) -> None:
        # Without its own pool, channels of one process share a connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._model = model
        self._channels = [grpc.insecure_channel(address, options) for _ in range(connections)]
        self._stubs = [GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._turn = 0
        query = service_pb2.ModelMetadataRequest(name=model)
        try:
            answers = [
                stub.ModelMetadata(query, timeout=_CONNECT_TIMEOUT_S, wait_for_ready=True)
                for stub in self._stubs
            ]
        except grpc.RpcError as error:
            self.close()
            raise StreamError(f"gRPC {address}: {_reason(error)}") from None
        inputs = {tensor.name: list(tensor.shape) for tensor in answers[0].inputs}
        self.contract = _contract(inputs)

    def encode(self, request: GenerationRequest) -> Any:
        """See `Streams.encode`."""
        message = service_pb2.ModelInferRequest(model_name=self._model, id=str(request.index))
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        tensors = {
            "input_ids": ("INT32", struct.pack(f"<{len(request.input_ids)}i", *request.input_ids)),
            "stream": ("BOOL", b"\1"),
            "exclude_input_in_output": ("BOOL", b"\1"),
            "sampling_parameters": ("BYTES", _text(sampling_parameters(request))),
            **{f"return_{name}": ("BOOL", b"\1") for name in self.contract.returned},
        }
        for name, (datatype, raw) in tensors.items():
            size = len(request.input_ids) if name == "input_ids" else 1
            shape = [1, size] if self.contract.batched else [size]
            message.inputs.add(name=name, datatype=datatype, shape=shape)
            message.raw_input_contents.append(raw)
        for name in ("text_output", *self.contract.returned):
            message.outputs.add(name=name)
        return message

    def outputs(self, encoded: Any, on_send: Callable[[], None]) -> Generator[Output, None, None]:
        """See `Streams.outputs`."""
        self._turn += 1
        stub = self._stubs[self._turn % len(self._stubs)]
        on_send()
        call = stub.ModelStreamInfer(iter((encoded,)))
        over = False
        try:
            for message in call:
                at_ns = time.perf_counter_ns()
                if message.error_message:
                    over = True
                    raise StreamError(message.error_message)
                inferred = message.infer_response
                over = inferred.parameters["triton_final_response"].bool_param
                output = _decoded(at_ns, inferred)
                if output is not None:
                    yield output
        except grpc.RpcError as error:
            over = True
            raise StreamError(_reason(error)) from None
        finally:
            # A cancellation that meets the end of its stream has crashed Triton 24.10.
            if not over:
                call.cancel()

    def close(self) -> None:
        """See `Streams.close`."""
        for channel in self._channels:
            channel.close()


class SseStreams:
    """generate_stream calls over HTTP/1.1, each on a connection of its own while it lasts.

    Events are read line by line as they come. (Locust's own `iter_lines` waits for blocks, which
    moves small events together.)
    """

    def __init__(self, host: str, model: str) -> None:
        parts = urlsplit(host if "://" in host else f"http://{host}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"host: got {host}, must be http://NAME:PORT")
        self._address = (parts.hostname, parts.port or 80)
        self._path = f"/v2/models/{model}"
        self._idle: list[http.client.HTTPConnection] = []
        self.contract = self._ask_contract()

    def encode(self, request: GenerationRequest) -> Any:
        """See `Streams.encode`."""
        body = {
            "id": str(request.index),
            "input_ids": request.input_ids,
            "stream": True,
            "exclude_input_in_output": True,
            "sampling_parameters": sampling_parameters(request),
            **{f"return_{name}": True for name in self.contract.returned},
        }
        return json.dumps(body).encode()

    def outputs(self, encoded: Any, on_send: Callable[[], None]) -> Generator[Output, None, None]:
        """See `Streams.outputs`."""
        connection = self._idle.pop() if self._idle else self._connect()
        whole = False
        try:
            on_send()
            connection.request("POST", f"{self._path}/generate_stream", encoded, _JSON)
            response = connection.getresponse()
            if response.status != 200:
                raise StreamError(f"HTTP {response.status}: {_error_text(response.read())}")
            while line := response.readline():
                at_ns = time.perf_counter_ns()
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    raise StreamError(event["error"])
                output = _parsed(at_ns, event)
                if output is not None:
                    yield output
            whole = True
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StreamError(f"{type(error).__name__}: {error}") from None
        finally:
            if whole:
                self._idle.append(connection)
            else:  # closing is how HTTP cancels
                connection.close()

    def close(self) -> None:
        """See `Streams.close`."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*self._address, timeout=None)
        try:
            connection.connect()
        except OSError as error:
            host, port = self._address
            raise StreamError(f"HTTP {host}:{port}: {error.strerror or error}") from None
        return connection

    def _ask_contract(self) -> Contract:
        connection = self._connect()
        connection.request("GET", self._path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise StreamError(f"HTTP {response.status}: {_error_text(body)}")
        self._idle.append(connection)
        return _contract({t["name"]: t["shape"] for t in json.loads(body)["inputs"]})


_JSON = {"Content-Type": "application/json"}


def sampling_parameters(request: GenerationRequest) -> str:
    """Exactly `max_tokens` tokens, the same at every repetition."""
    return json.dumps({"max_tokens": request.max_tokens, "temperature": 0, "ignore_eos": True})


def _contract(inputs: dict[str, list[int]]) -> Contract:
    """From the names and shapes of the model's inputs."""
    if "input_ids" not in inputs:
        raise StreamError("the model takes no input_ids: this load generator is for Octavo's")
    # HTTP's metadata give sizes as text on some releases, so only the rank is looked at.
    return Contract(
        batched=len(inputs["stream"]) == 2, cached_tokens=f"return_{_CACHED_TOKENS}" in inputs
    )


def _decoded(at_ns: int, inferred: Any) -> Output | None:
    raw = {
        tensor.name: content
        for tensor, content in zip(inferred.outputs, inferred.raw_output_contents, strict=True)
    }
    if not raw:
        return None
    return _output(
        at_ns,
        has_text=len(raw["text_output"]) > 4,  # behind the length
        num_tokens=_number(raw, "num_output_tokens") or 0,
        finish_reason=raw["finish_reason"][4:].decode(),
        input_tokens=_number(raw, "num_input_tokens"),
        cached_tokens=_number(raw, _CACHED_TOKENS),
    )


def _parsed(at_ns: int, event: dict[str, Any]) -> Output | None:
    if "text_output" not in event:
        return None
    return _output(
        at_ns,
        has_text=bool(event["text_output"]),
        num_tokens=event.get("num_output_tokens") or 0,
        finish_reason=event["finish_reason"],
        input_tokens=event.get("num_input_tokens"),
        cached_tokens=event.get(_CACHED_TOKENS),
    )


def _output(
    at_ns: int,
    *,
    has_text: bool,
    num_tokens: int,
    finish_reason: str,
    input_tokens: int | None,
    cached_tokens: int | None,
) -> Output | None:
    reason = None if finish_reason == "None" else finish_reason
    if not (has_text or num_tokens or reason):
        return None
    return Output(at_ns, has_text, num_tokens, reason, input_tokens, cached_tokens)


def _number(raw: dict[str, bytes], name: str) -> int | None:
    return int.from_bytes(raw[name][:4], "little") if raw.get(name) else None


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def _reason(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
