"""A gRPC server that speaks Triton's protocol and answers what a test tells it to."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

Script = Callable[["Received"], Iterator[Any]]


@dataclass
class Received:
    """One ModelStreamInfer call, as the server saw it."""

    request: Any
    metadata: dict[str, str]
    context: Any
    batched: bool
    ended: threading.Event = field(default_factory=threading.Event)
    """The call is over, in whatever way."""
    completed: bool = False
    """The script came to its end before the call did: nobody cancelled it."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The values by name; a single element is unwrapped."""
        values: dict[str, Any] = {}
        for tensor in self.request.inputs:
            contents = tensor.contents
            elements = [
                *(text.decode() for text in contents.bytes_contents),
                *contents.bool_contents,
                *contents.int_contents,
            ]
            values[tensor.name] = elements[0] if tensor.name != "input_ids" else elements
        return values

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {tensor.name: list(tensor.shape) for tensor in self.request.inputs}

    @property
    def sampling(self) -> dict[str, Any]:
        parsed = json.loads(self.inputs["sampling_parameters"])
        assert isinstance(parsed, dict)
        return parsed

    def reply(
        self,
        text: str,
        finish_reason: str = "None",
        *,
        tokens: int = 1,
        final: bool | None = None,
        **outputs: Any,
    ) -> Any:
        """A response with the outputs that were asked for; final if it has a finish reason."""
        ids = outputs.pop("token_ids", list(range(tokens)))
        values = {
            "text_output": ("BYTES", _bytes(text)),
            "finish_reason": ("BYTES", _bytes(finish_reason)),
            "num_input_tokens": ("UINT32", struct.pack("<I", 3)),
            "num_output_tokens": ("UINT32", struct.pack("<I", tokens)),
            "token_ids": ("INT32", struct.pack(f"<{len(ids)}i", *ids)),
            "logprobs": ("BYTES", _bytes(json.dumps(outputs.pop("logprobs", None)))),
            "cumulative_logprob": ("FP32", struct.pack("<f", outputs.pop("cumulative", 0.0))),
        }
        assert not outputs
        response = pb.ModelStreamInferResponse()
        for wanted in self.request.outputs:
            datatype, raw = values[wanted.name]
            size = len(ids) if wanted.name == "token_ids" else 1
            shape = [1, size] if self.batched else [size]
            response.infer_response.outputs.add(name=wanted.name, datatype=datatype, shape=shape)
            response.infer_response.raw_output_contents.append(raw)
        is_final = finish_reason != "None" if final is None else final
        response.infer_response.parameters["triton_final_response"].bool_param = is_final
        return response

    def flag_only(self) -> Any:
        """The empty final response."""
        response = pb.ModelStreamInferResponse()
        response.infer_response.parameters["triton_final_response"].bool_param = True
        return response

    def error(self, text: str) -> Any:
        """A model's error, with the final flag."""
        response = self.flag_only()
        response.error_message = text
        return response

    def front_end_error(self, text: str) -> Any:
        """An error of Triton's front end, which carries no flag."""
        return pb.ModelStreamInferResponse(error_message=f"[request id: <id_unknown>] {text}")

    def wait_for_end(self) -> None:
        """Stay silent until the client leaves."""
        assert self.ended.wait(10), "the client is still there"


def _bytes(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def say_hello(call: Received) -> Iterator[Any]:
    """Three chunks, the last with the final flag; or all at once."""
    if not call.inputs["stream"]:
        yield call.reply("Hello, world", "stop", tokens=3)
        return
    yield call.reply("Hello")
    yield call.reply(", wor")
    yield call.reply("ld", "stop")


class ScriptedServer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Set `script` to decide the answers; `received` keeps the calls."""

    def __init__(self, *, batched: bool = True) -> None:
        self.batched = batched
        self.script: Script = say_hello
        self.received: list[Received] = []
        self.arrived = threading.Semaphore(0)
        self.metadata_queries = 0
        self.model_ready = True
        self.takes_text = True
        self._server = grpc.server(ThreadPoolExecutor(max_workers=40))
        add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    @property
    def last(self) -> Received:
        return self.received[-1]

    def ModelStreamInfer(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        metadata = dict(context.invocation_metadata())
        call = Received(next(request_iterator), metadata, context, self.batched)
        context.add_callback(call.ended.set)
        self.received.append(call)
        self.arrived.release()
        yield from self.script(call)
        call.completed = not call.ended.is_set()

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.metadata_queries += 1
        if request.name != "llm":
            text = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        answer = pb.ModelMetadataResponse(name="llm", versions=["1"], platform="python")
        shape = [-1, 1] if self.batched else [1]
        answer.inputs.add(name="stream", datatype="BOOL", shape=shape)
        if self.takes_text:
            answer.inputs.add(name="text_input", datatype="BYTES", shape=shape)
        return answer

    def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.model_ready and request.name == "llm")
