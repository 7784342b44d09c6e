"""A scripted server that speaks Triton's gRPC."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from tests.client.scripted_server import Columns, Received, ScriptedServer


@dataclass
class GrpcReceived(Received):
    """One ModelStreamInfer call."""

    request: Any
    context: Any
    batched: bool

    @property
    def inputs(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for tensor in self.request.inputs:
            contents = tensor.contents
            elements = [
                *(text.decode() for text in contents.bytes_contents),
                *contents.bool_contents,
                *contents.int_contents,
            ]
            values[tensor.name] = elements[0] if len(elements) == 1 else elements
        return values

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {tensor.name: list(tensor.shape) for tensor in self.request.inputs}

    @property
    def wanted(self) -> set[str]:
        return {output.name for output in self.request.outputs}

    def response(self, columns: Columns, final: bool) -> Any:
        response = pb.ModelStreamInferResponse()
        for name, (datatype, elements) in columns.items():
            shape = [1, len(elements)] if self.batched else [len(elements)]
            response.infer_response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.infer_response.raw_output_contents.append(_raw(datatype, elements))
        response.infer_response.parameters["triton_final_response"].bool_param = final
        return response

    def flag_only(self) -> Any:
        return self.response({}, final=True)

    def error(self, text: str) -> Any:
        response = self.flag_only()
        response.error_message = text
        return response

    def front_end_error(self, text: str) -> Any:
        # It carries no flag.
        return pb.ModelStreamInferResponse(error_message=f"[request id: <id_unknown>] {text}")


def _raw(datatype: str, elements: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in elements)
    code = {"FP32": "f", "UINT32": "I", "INT32": "i"}[datatype]
    return struct.pack(f"<{len(elements)}{code}", *elements)


class ScriptedGrpcServer(ScriptedServer, GRPCInferenceServiceServicer):  # type: ignore[misc]
    """See `ScriptedServer`."""

    def __init__(self, *, batched: bool = True) -> None:
        super().__init__(batched=batched)
        self._server = grpc.server(ThreadPoolExecutor(max_workers=40))
        add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def ModelStreamInfer(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        metadata, request = dict(context.invocation_metadata()), next(request_iterator)
        call = GrpcReceived(
            metadata, request.id, request.model_version, request, context, self.batched
        )
        context.add_callback(call.ended.set)
        yield from self.run(call)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.metadata_queries += 1
        if request.name != "llm":
            text = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        answer = pb.ModelMetadataResponse(name="llm", versions=["1"], platform="python")
        for name, (datatype, shape) in self.input_shapes.items():
            answer.inputs.add(name=name, datatype=datatype, shape=shape)
        return answer

    def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.model_ready and request.name == "llm")
