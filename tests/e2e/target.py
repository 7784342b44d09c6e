"""A running server and how tests talk to it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tritonclient.grpc import service_pb2

from octavo.cli import processes
from octavo.cli.embedded_server import EmbeddedServer
from octavo.cli.ports import Ports
from octavo.cli.server_settings import Contract, ServerSettings
from tests.e2e.streams import Answer, HttpStream, Stream, Value, infer_request

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
MODEL = ROOT / "models" / "octavo-tiny"
VOCAB_SIZE = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["vocab_size"]

# The exporter flushes once a second.
FLUSH_S = 1.0

Prompt = str | Sequence[int]
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_RETURN_FLAGS = ("return_finish_reason", "return_token_ids", "return_num_output_tokens")


@dataclass(frozen=True)
class Metrics:
    """One scrape."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name and these labels; 0 if there is none yet."""
        wanted = labels.items()
        return sum(
            value for (n, own), value in self.samples.items() if n == name and wanted <= set(own)
        )


@dataclass(frozen=True)
class Target:
    """A server under test, in one of its two forms."""

    server: EmbeddedServer
    http: httpx.Client

    @property
    def settings(self) -> ServerSettings:
        return self.server.settings

    @property
    def batched(self) -> bool:
        return self.settings.contract == "batched"

    def request(
        self,
        prompt: Prompt | None,
        *,
        stream: bool = True,
        level: int | None = None,
        timeout_s: float | None = None,
        inputs: dict[str, Value] | None = None,
        shapes: dict[str, list[int]] | None = None,
        **params: Any,
    ) -> service_pb2.ModelInferRequest:
        """Greedy, unless `params` say otherwise. `level` and `timeout_s` are Triton's own, of its
        queue; `inputs` adds tensors or replaces ours."""
        tensors: dict[str, Value] = {}
        if prompt is not None:
            tensors["text_input" if isinstance(prompt, str) else "input_ids"] = prompt
        own = {"temperature": 0, "ignore_eos": True, **params}
        tensors |= {"stream": stream, "sampling_parameters": json.dumps(own)}
        tensors |= dict.fromkeys(_RETURN_FLAGS, True)
        parameters: dict[str, str | int | float | bool] = {
            "triton_enable_empty_final_response": True
        }
        if level is not None:
            parameters["priority"] = level
        if timeout_s is not None:
            parameters["timeout"] = round(timeout_s * 1e6)
        return infer_request(
            tensors | (inputs or {}), batched=self.batched, parameters=parameters, shapes=shapes
        )

    def send(self, prompt: Prompt | None, **options: Any) -> Stream:
        """Starts a request; `options` are those of `request`."""
        return Stream(self.settings.grpc_url, self.request(prompt, **options))

    def hold(self, prompt: list[int], max_tokens: int) -> HttpStream:
        """Takes a place of the engine until its `leave`."""
        params = json.dumps({"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0})
        body = {"input_ids": prompt, "stream": True, "sampling_parameters": params}
        return HttpStream(self.settings.generate_stream_url, body)

    def generate(self, prompt: Prompt | None, **options: Any) -> Answer:
        return self.send(prompt, **options).result()

    def post(self, route: str, body: dict[str, Any] | bytes) -> httpx.Response:
        """`route` is generate or generate_stream."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(f"{self.settings.http_url}/v2/models/llm/{route}", content=content)

    def metrics(self) -> Metrics:
        text = self.http.get(self.settings.metrics_url).text
        return Metrics(
            {
                (name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))): float(value)
                for name, labels, value in _SAMPLE.findall(text)
            }
        )

    def settled_metrics(self) -> Metrics:
        """Metrics with everything in them that has happened so far."""
        time.sleep(FLUSH_S + 0.2)
        return self.metrics()

    def stub(self, model: str = "llm") -> int:
        """The process of a model."""
        assert self.server.pid is not None
        lines = {pid: processes.command_line(pid) for pid in processes.children(self.server.pid)}
        (stub,) = [
            pid
            for pid, line in lines.items()
            if "triton_python_backend_stub" in line and f"/{model}/" in line
        ]
        return stub

    def num_queued(self) -> int:
        """Requests in Triton's own queue; exact at any moment."""
        return int(self.metrics().value("nv_inference_pending_request_count"))

    def wait_until_queued(self, count: int) -> None:
        wait_until(lambda: self.num_queued() == count, f"{count} requests queued")

    def wait_until_idle(self) -> None:
        def is_idle() -> bool:
            metrics = self.metrics()
            names = ("nv_inference_pending_request_count", "octavo_num_requests_running",
                     "octavo_num_requests_waiting", "octavo_kv_blocks_used")  # fmt: skip
            return not any(metrics.value(name) for name in names)

        wait_until(is_idle, "idle")


# Settings of a server whose steps are long enough for a test to act within a request.
SLOW: dict[str, Any] = {"kernels": "reference"}


@contextmanager
def serving(
    folder: Path,
    contract: Contract,
    *,
    model: Path = MODEL,
    repository: Path = REPOSITORY,
    drain_timeout_s: float = 5.0,
    **engine: object,
) -> Iterator[Target]:
    """A server of its own in fp32; its log is in `folder`. `engine` overrides settings."""
    settings = ServerSettings(
        repository=repository,
        model=model,
        contract=contract,
        ports=Ports.free(),
        log_file=folder / "server.log",
        drain_timeout_s=drain_timeout_s,
        engine_overrides={k: str(v) for k, v in {"dtype": "float32", **engine}.items()},
    )
    server = EmbeddedServer(settings)
    server.start()
    try:
        with httpx.Client(timeout=60, trust_env=False) as http:
            yield Target(server, http)
    finally:
        server.kill()  # a proper stop takes seconds; it has tests of its own


def bounded_repository(folder: Path, max_queue_size: int) -> Path:
    """A copy of the model repository whose queues hold less."""
    copy = folder / "repository"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for config in (copy / "llm" / "config.pbtxt", copy / "llm" / "configs" / "vllm.pbtxt"):
        text, replaced = re.subn(
            r"max_queue_size: \d+", f"max_queue_size: {max_queue_size}", config.read_text("utf-8")
        )
        assert replaced == 1
        config.write_text(text, encoding="utf-8")
    return copy


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not {what} within {timeout_s} s"
        time.sleep(0.005)


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    """A prompt of exactly so many tokens, none of them special."""
    return [10 + (seed * 7919 + i * i * 31 + i * 17) % (VOCAB_SIZE - 10) for i in range(length)]
