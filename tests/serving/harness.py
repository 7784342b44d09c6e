"""Runs the real model class under the fake server, and reads what it sent."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from octavo.execution.sampler import SampledTokens
from octavo.scheduling.sequence import StepPlan
from octavo.serving import wire
from octavo.serving.server import OctavoModel

TIMEOUT_S = 30.0
ALL_OUTPUTS = [wire.TEXT_OUTPUT, *wire.RETURN_FLAGS]
GREEDY = {"temperature": 0, "ignore_eos": True}


class Request:
    """One request and its answer."""

    def __init__(self, request: Any) -> None:
        self.triton = request
        self.sender = request.sender

    def wait(self, timeout_s: float = TIMEOUT_S) -> "Request":
        assert self.sender.finished.wait(timeout_s), "no final response"
        return self

    @property
    def error(self) -> tuple[str, str] | None:
        """(code, message) of the final response, if it is an error."""
        error = self.wait().sender.responses[-1].error()
        return None if error is None else (error.code(), error.message())

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The values of each response by output name; fails if there was an error."""
        assert self.error is None, self.error
        return [
            {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            for response in self.sender.responses
        ]

    def values(self, output: str) -> list[Any]:
        """The elements of one output, over all responses; bytes as text."""
        flat = [value for chunk in self.chunks for value in chunk[output].reshape(-1).tolist()]
        return [value.decode() if isinstance(value, bytes) else value for value in flat]

    @property
    def text(self) -> str:
        return "".join(self.values(wire.TEXT_OUTPUT))

    @property
    def token_ids(self) -> list[int]:
        return self.values(wire.TOKEN_IDS)


def request(
    text: str | None = "A",
    *,
    sampling: dict[str, Any] | str | None = None,
    outputs: list[str] = ALL_OUTPUTS,
    batched: bool = True,
    parameters: dict[str, Any] | None = None,
    timeout_us: int = 0,
    **inputs: Any,
) -> Request:
    """`sampling` becomes the JSON tensor; `inputs` are one-element inputs by name, or arrays
    that are taken as they are."""
    inputs = {**inputs}
    if text is not None:
        inputs[wire.TEXT_INPUT] = text
    if sampling is not None:
        is_text = isinstance(sampling, str)
        inputs[wire.SAMPLING_PARAMETERS] = sampling if is_text else json.dumps(sampling)
    tensors = [
        pb_utils.Tensor(name, _array(value, batched=batched)) for name, value in inputs.items()
    ]
    return Request(pb_utils.InferenceRequest(tensors, outputs, parameters, timeout_us))


def _array(value: Any, *, batched: bool) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        value = value.encode()
    dtype = object if isinstance(value, bytes) else None
    array = np.array(value if isinstance(value, list) else [value], dtype=dtype)
    return array[None] if batched else array


def all_flags() -> dict[str, bool]:
    return dict.fromkeys(wire.RETURN_FLAGS.values(), True)


class Served:
    """A loaded model. What it was given it must have answered, in order, when it ends."""

    def __init__(
        self,
        folder: Path,
        version: Path,
        *,
        batched: bool = True,
        gpu: int = 0,
        settings: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        own = {"model": str(folder), "num_threads": 1, "block_size": 4, **settings}
        lines = [f"{name} = {json.dumps(value)}" for name, value in own.items()]
        version.mkdir()
        (version / "engine.toml").write_text("\n".join(lines), encoding="utf-8")
        self.requests: list[Request] = []
        self._threads_before = set(threading.enumerate())
        self.batched = batched
        self.model = OctavoModel()
        self.model.initialize(
            {
                "model_config": json.dumps({"max_batch_size": 16 if batched else 0}),
                "model_repository": str(version.parent),
                "model_version": version.name,
                "model_name": "llm",
                "model_instance_name": f"llm_0_{gpu}",
                "model_instance_device_id": str(gpu),
            }
        )
        self.engine = self.model._engine
        self.stats = self.model._admission._stats
        self.reader = self.model._admission._reader
        self.billing = self.model._billing
        self.tokenizer = self.model._admission._tokenizer
        self.fails = False  # set where the engine is made to: then its blocks are lost
        self._finalized = False

    def execute(self, *requests: Request) -> None:
        self.requests += requests
        assert self.model.execute([each.triton for each in requests]) is None

    def execute_aside(self, *requests: Request) -> threading.Thread:
        """As execute, on a thread of its own: for calls that are meant to block."""
        thread = threading.Thread(target=self.execute, args=requests)
        thread.start()
        return thread

    def ask(self, text: str | None = "A", **values: Any) -> Request:
        asked = request(text, batched=self.batched, **values)
        self.execute(asked)
        return asked.wait()

    def flush_metrics(self) -> None:
        """Now, and from now on only when a test says so."""
        exporter = self.model._metrics
        exporter._stopping.set()
        exporter._thread.join()
        exporter.flush()

    def finalize(self) -> None:
        if not self._finalized:
            self._finalized = True
            self.model.finalize()

    def check(self) -> None:
        """What must hold whatever was asked."""
        self.finalize()
        for each in self.requests:
            assert each.sender.violations == []
            finals = [
                bool(f & pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL) for f in each.sender.flags
            ]
            assert finals == [False] * (len(finals) - 1) + [True]
        if not self.fails:
            self.engine.scheduler.check_integrity()
            assert self.num_used_blocks == 0
        started = set(threading.enumerate()) - self._threads_before
        assert not [thread.name for thread in started if thread.name.startswith("octavo-")]

    @property
    def num_used_blocks(self) -> int:
        return self.engine.scheduler.allocator.num_used


class StepGate:
    """Holds the engine before each step until it is let through."""

    def __init__(self, served: Served) -> None:
        self._engine = served.engine
        self._run: Callable[[StepPlan], SampledTokens] = served.engine.runner.run
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._is_open = False
        served.engine.runner.run = self._gated  # type: ignore[method-assign]

    def _gated(self, plan: StepPlan) -> SampledTokens:
        if not self._is_open:
            self._arrived.release()
            assert self._permits.acquire(timeout=TIMEOUT_S)
        return self._run(plan)

    def wait(self) -> None:
        """Returns when the engine stands before a step."""
        assert self._arrived.acquire(timeout=TIMEOUT_S)

    def let_through(self) -> None:
        """Lets one step pass."""
        self._permits.release()

    def open(self) -> None:
        """Lets all pass from now on."""
        self._is_open = True
        self._engine.runner.run = self._run  # type: ignore[method-assign]
        self._permits.release()


def ask_in_pieces(served: Served, text: str = "A", **values: Any) -> Request:
    """A streamed answer in two responses at least: the first token is sent before the second is
    made. Else a sender that is behind could send all as one."""
    gate = StepGate(served)
    asked = request(text, batched=served.batched, stream=True, **values)
    served.execute(asked)
    gate.wait()
    gate.let_through()
    wait_until(lambda: bool(asked.sender.responses))
    gate.open()
    return asked.wait()


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """For what other threads do on their own; polls."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)
