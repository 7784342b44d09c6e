"""The other observer: a minimal client on tritonclient.grpc.aio, with no code of loadtest/ in
what it sends, reads or times."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

_RETURNED = ("finish_reason", "num_input_tokens", "num_output_tokens")


@dataclass
class Seen:
    """One request, in seconds of time.perf_counter."""

    sent_s: float = 0.0
    outputs_s: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def ttft_s(self) -> float:
        return self.outputs_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.outputs_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float:
        return (self.e2e_s - self.ttft_s) / (self.tokens - 1)


async def generate(
    client: Any, input_ids: Sequence[int], max_tokens: int, seen: Seen
) -> AsyncIterator[Any]:
    """The responses, each noted in `seen` as it comes."""
    inputs = [
        _input("input_ids", np.array([input_ids], np.int32), "INT32"),
        _input("stream", np.array([[True]]), "BOOL"),
        _input("exclude_input_in_output", np.array([[True]]), "BOOL"),
        _input("sampling_parameters", np.array([[_sampling(max_tokens)]], object), "BYTES"),
        *(_input(f"return_{name}", np.array([[True]]), "BOOL") for name in _RETURNED),
    ]
    outputs = [grpcclient.InferRequestedOutput(name) for name in ("text_output", *_RETURNED)]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": "llm",
            "inputs": inputs,
            "outputs": outputs,
            "enable_empty_final_response": True,
        }

    seen.sent_s = time.perf_counter()
    async for result, error in client.stream_infer(requests()):
        at_s = time.perf_counter()
        assert error is None, error
        response = result.get_response()
        if response.outputs:
            seen.outputs_s.append(at_s)
            seen.tokens += int(result.as_numpy("num_output_tokens").sum())
        yield response


async def send_all(
    address: str, prompts: Sequence[tuple[Sequence[int], int]], schedule_s: Sequence[float]
) -> list[Seen]:
    """Sends each prompt, for so many tokens, at its time; an open loop."""
    async with aioclient.InferenceServerClient(address) as client:
        await client.is_server_live()

        async def send(prompt: tuple[Sequence[int], int], due_s: float) -> Seen:
            await asyncio.sleep(due_s - time.perf_counter())
            seen = Seen()
            async for _ in generate(client, *prompt, seen):
                pass
            return seen

        start_s = time.perf_counter() + 0.5
        return await asyncio.gather(
            *(send(p, start_s + at_s) for p, at_s in zip(prompts, schedule_s, strict=True))
        )


class Relay(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Stands between a client and the server: it sends the client's requests with `generate`
    and hands on the responses. So both see the same ones; `seen` has its own times, by id, where
    a request counts as sent when it reaches the relay."""

    def __init__(self, client: Any) -> None:
        self.seen: dict[int, Seen] = {}
        self._client = client

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        return await self._client.get_model_metadata(request.name)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> Any:
        request = await anext(requests)
        arrived_s = time.perf_counter()
        raw = {
            tensor.name: content
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        seen = self.seen.setdefault(int(request.id), Seen())
        input_ids = np.frombuffer(raw["input_ids"], np.int32).tolist()
        max_tokens = json.loads(raw["sampling_parameters"][4:])["max_tokens"]
        async for response in generate(self._client, input_ids, max_tokens, seen):
            seen.sent_s = arrived_s
            yield pb.ModelStreamInferResponse(infer_response=response)


@asynccontextmanager
async def relaying(address: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to the server at `address`, and its own address."""
    async with aioclient.InferenceServerClient(address) as client:
        relay = Relay(client)
        server = grpc.aio.server()
        add_GRPCInferenceServiceServicer_to_server(relay, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield relay, f"127.0.0.1:{port}"
        await server.stop(None)


def _input(name: str, value: Any, datatype: str) -> Any:
    tensor = grpcclient.InferInput(name, list(value.shape), datatype)
    tensor.set_data_from_numpy(value)
    return tensor


def _sampling(max_tokens: int) -> bytes:
    return json.dumps({"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}).encode()
