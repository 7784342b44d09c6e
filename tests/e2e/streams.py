"""One request on a gRPC connection of its own: what arrives is kept with its time."""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

# Each connection is real: without this, channels of one process share theirs.
_CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_NUMBERS = {"FP32": np.float32, "INT32": np.int32, "UINT32": np.uint32}

Value = bytes | str | bool | Sequence[int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response. Outputs that were not sent are absent from `outputs`."""

    at_s: float
    outputs: dict[str, Any]
    is_final: bool

    @property
    def text(self) -> str:
        return str(self.outputs.get("text_output", ""))


@dataclass(slots=True)
class Answer:
    """All that came back for one request."""

    sent_s: float
    chunks: list[Chunk] = field(default_factory=list)
    error: str | None = None
    code: str | None = None  # of gRPC itself; errors of the server have only their text
    ended_s: float = 0.0

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [i for chunk in self.chunks for i in chunk.outputs.get("token_ids", [])]

    @property
    def finish_reason(self) -> str:
        return str(self.chunks[-1].outputs["finish_reason"]) if self.chunks else ""

    @property
    def num_finals(self) -> int:
        return sum(chunk.is_final for chunk in self.chunks)

    @property
    def ttft_s(self) -> float:
        return self.chunks[0].at_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        times = [chunk.at_s for chunk in self.chunks]
        return [after - before for before, after in itertools.pairwise(times)]


class Stream:
    """A request that is under way; a thread reads its responses."""

    def __init__(self, url: str, request: service_pb2.ModelInferRequest) -> None:
        self._channel = grpc.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self._first = threading.Event()
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # Connected first, so that requests arrive in the order they are sent in.
        stub.ServerLive(service_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=10)
        self.answer = Answer(sent_s=time.monotonic())
        # Without the header that would turn errors into statuses: Triton 24.10 can die of it.
        self._call = stub.ModelStreamInfer(iter([request]), timeout=120)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def cancel(self) -> float:
        """Cancels the call, keeping the connection; returns when."""
        now_s = time.monotonic()
        self._call.cancel()
        return now_s

    def disconnect(self) -> float:
        """Closes the connection; returns when."""
        now_s = time.monotonic()
        self._channel.close()
        return now_s

    def wait_for_first(self, timeout_s: float = 30) -> Chunk:
        assert self._first.wait(timeout_s), "nothing came"
        assert self.answer.chunks, f"an error came: {self.answer.error}"
        return self.answer.chunks[0]

    @property
    def is_done(self) -> bool:
        return not self._reader.is_alive()

    def wait(self, timeout_s: float = 60) -> Answer:
        """The answer, whether it is an error or not."""
        self._reader.join(timeout_s)
        assert self.is_done, f"no end within {timeout_s} s"
        self._channel.close()
        return self.answer

    def result(self, timeout_s: float = 60) -> Answer:
        answer = self.wait(timeout_s)
        assert answer.error is None, answer.error
        return answer

    def _read(self) -> None:
        answer = self.answer
        try:
            for message in self._call:
                if message.error_message:
                    answer.error = message.error_message
                    continue
                chunk = _chunk(message.infer_response)
                if chunk.outputs:
                    answer.chunks.append(chunk)
                    self._first.set()
        except grpc.RpcError as error:
            answer.error, answer.code = error.details(), error.code().name
        answer.ended_s = time.monotonic()
        self._first.set()


class HttpStream:
    """A request over generate_stream that holds a place of the engine until `leave`.

    Leaving it takes nothing of the gRPC front, whose 2.51 loses streams, or dies, once in a few
    thousand cancelled calls: tests that only need a place freed leave over HTTP.
    """

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.last_at_s = 0.0
        self._first = threading.Event()
        self._leaving = threading.Event()
        self._ended_early = False
        self._reader = threading.Thread(target=self._read, args=(url, body), daemon=True)
        self._reader.start()

    def wait_for_first(self, timeout_s: float = 30) -> None:
        assert self._first.wait(timeout_s), "nothing came"

    def leave(self, timeout_s: float = 30) -> None:
        """Closes the connection at its next event."""
        self._leaving.set()
        self._reader.join(timeout_s)
        assert not self._reader.is_alive(), f"no event within {timeout_s} s"
        assert not self._ended_early, "it has ended too early to be in the way"

    def _read(self, url: str, body: dict[str, Any]) -> None:
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    self.last_at_s = time.monotonic()
                    self._first.set()
                if self._leaving.is_set():
                    return
        self._ended_early = True


def infer_request(
    inputs: dict[str, Value],
    *,
    batched: bool,
    model: str = "llm",
    parameters: dict[str, str | int | float | bool] | None = None,
    shapes: dict[str, list[int]] | None = None,
    outputs: Sequence[str] = (),
) -> service_pb2.ModelInferRequest:
    """A KServe request. Text goes as BYTES, truth values as BOOL, lists as INT32; `shapes`
    replaces the right shape of an input; no `outputs` requests all."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, value in inputs.items():
        datatype, size, raw = _encoded(value)
        shape = (shapes or {}).get(name) or ([1, size] if batched else [size])
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw * (shape[0] if name in (shapes or {}) else 1))
    for name in outputs:
        request.outputs.add(name=name)
    for name, given in (parameters or {}).items():
        field_name = _parameter_field(name, given)
        setattr(request.parameters[name], field_name, given)
    return request


def _encoded(value: Value) -> tuple[str, int, bytes]:
    if isinstance(value, bool):
        return "BOOL", 1, bytes([value])
    if isinstance(value, (str, bytes)):
        raw = value.encode() if isinstance(value, str) else value
        return "BYTES", 1, struct.pack("<I", len(raw)) + raw
    return "INT32", len(value), np.asarray(value, dtype="<i4").tobytes()


def _parameter_field(name: str, value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, str):
        return "string_param"
    if isinstance(value, float):
        return "double_param"
    return "uint64_param" if name == "priority" else "int64_param"


def _chunk(response: service_pb2.ModelInferResponse) -> Chunk:
    outputs = {
        output.name: _decoded(output.datatype, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    is_final = response.parameters["triton_final_response"].bool_param
    return Chunk(time.monotonic(), outputs, is_final)


def _decoded(datatype: str, raw: bytes) -> Any:
    if datatype == "BYTES":  # all of ours have one element
        return raw[4:].decode("utf-8")
    values = np.frombuffer(raw, dtype=_NUMBERS[datatype])
    return values.tolist()
