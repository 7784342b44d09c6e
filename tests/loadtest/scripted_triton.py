"""A server of Triton's gRPC and HTTP streams with exact timings, in a process of its own.

    python -m tests.loadtest.scripted_triton --ttft 0.1 --gap 0.02

Prints its addresses as one JSON line and serves until its input ends. A request for n tokens is
answered with n outputs of one token: the first after `ttft` seconds, the others `gap` apart, all
counted from its arrival. `--stall-every` and `--stall` plant a stall of the whole server: in the
last STALL seconds of each period nothing is sent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

INPUTS = ("input_ids", "stream", "sampling_parameters")
FAILS = 777
"""A request for so many tokens fails after its first output."""


@dataclass(frozen=True)
class Timing:
    ttft_s: float
    gap_s: float
    stall_every_s: float = 0.0
    stall_s: float = 0.0

    def outputs(self, num_tokens: int) -> Iterator[tuple[str, str]]:
        """Text and finish reason of each output, when it is due."""
        arrived_s = time.perf_counter()
        for index in range(num_tokens):
            self._wait(arrived_s + self.ttft_s + index * self.gap_s)
            if num_tokens == FAILS and index == 1:
                raise RuntimeError("planted")
            yield f"{index} ", "length" if index == num_tokens - 1 else "None"

    def _wait(self, due_s: float) -> None:
        time.sleep(max(0.0, due_s - time.perf_counter()))
        if self.stall_every_s:
            phase_s = time.perf_counter() % self.stall_every_s
            if phase_s > self.stall_every_s - self.stall_s:
                time.sleep(self.stall_every_s - phase_s)


class Grpc(GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, timing: Timing) -> None:
        self.timing = timing

    def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        answer = pb.ModelMetadataResponse(name="llm", versions=["1"])
        for name in INPUTS:
            answer.inputs.add(name=name, shape=[-1, 1])
        return answer

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        request = next(requests)
        raw = dict(
            zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True)
        )
        num_tokens = json.loads(raw["sampling_parameters"][4:])["max_tokens"]
        try:
            for text, reason in self.timing.outputs(num_tokens):
                yield response(text, reason, len(raw["input_ids"]) // 4)
        except RuntimeError as error:
            answer = response("", "None", 0)
            answer.infer_response.parameters["triton_final_response"].bool_param = True
            answer.error_message = str(error)
            yield answer


def response(text: str, reason: str, num_input_tokens: int) -> Any:
    answer = pb.ModelStreamInferResponse()
    values = {
        "text_output": len(text).to_bytes(4, "little") + text.encode(),
        "finish_reason": len(reason).to_bytes(4, "little") + reason.encode(),
        "num_input_tokens": num_input_tokens.to_bytes(4, "little"),
        "num_output_tokens": (1).to_bytes(4, "little"),
    }
    for name, raw in values.items():
        datatype = "UINT32" if name.startswith("num_") else "BYTES"
        answer.infer_response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        answer.infer_response.raw_output_contents.append(raw)
    is_final = reason != "None"
    answer.infer_response.parameters["triton_final_response"].bool_param = is_final
    return answer


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timing: Timing
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = json.dumps({"inputs": [{"name": name, "shape": [-1, 1]} for name in INPUTS]})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        num_tokens = json.loads(request["sampling_parameters"])["max_tokens"]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for text, reason in self.timing.outputs(num_tokens):
                event = {"text_output": text, "finish_reason": reason, "num_output_tokens": 1}
                self.chunk({**event, "num_input_tokens": len(request["input_ids"])})
        except RuntimeError as error:
            self.chunk({"error": str(error)})
        except OSError:  # the client has left
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, event: dict[str, Any]) -> None:
        data = f"data: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class Addresses:
    grpc: str
    http: str


@contextmanager
def scripted_triton(**timing: float) -> Iterator[Addresses]:
    """A running server; the arguments are the fields of Timing."""
    options = [f"--{name.removesuffix('_s').replace('_', '-')}={v}" for name, v in timing.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.loadtest.scripted_triton", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Addresses(**json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("ttft", "gap", "stall-every", "stall"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    args = parser.parse_args()
    timing = Timing(args.ttft, args.gap, args.stall_every, args.stall)
    server = grpc.server(ThreadPoolExecutor(max_workers=256))
    add_GRPCInferenceServiceServicer_to_server(Grpc(timing), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    Http.timing = timing
    web = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, daemon=True).start()
    addresses = {"grpc": f"127.0.0.1:{port}", "http": f"http://127.0.0.1:{web.server_port}"}
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
