"""What the Triton server's Python stub offers to a model, as far as octavo.serving uses it.

A misuse that could crash the real stub is written into the sender's `violations`: an exception
would only reach the sending thread.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG"
    UNAVAILABLE, UNSUPPORTED, CANCELLED = "UNAVAILABLE", "UNSUPPORTED", "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        message.encode("utf-8")  # becomes a C++ string
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class Tensor:
    def __init__(self, name: str, values: NDArray[Any]) -> None:
        assert isinstance(values, np.ndarray), type(values)
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._values


class InferenceResponse:
    def __init__(
        self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None
    ) -> None:
        self._output_tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Records responses and their flags. The hooks let a test act, or raise, inside a call."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.flags: list[int] = []
        self.violations: list[str] = []
        self.num_cancel_polls = 0
        self.cancelled = False
        self.finished = threading.Event()
        self.on_send: Callable[[], None] = lambda: None
        self.on_is_cancelled: Callable[[], None] = lambda: None
        self._left_s = float("-inf")  # when the model was told that the client has left
        self._lock = threading.Lock()

    def send(self, response: InferenceResponse | None, flags: int = 0) -> None:
        self.on_send()
        with self._lock:
            if self.finished.is_set():
                self.violations.append("send after the final response")
            if time.perf_counter() - self._left_s < 0.01:
                self.violations.append("send right after the client has left")
            if response is None:
                self.violations.append("an empty response")
            else:
                self.responses.append(response)
                self.flags.append(flags)
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.finished.set()

    def is_cancelled(self) -> bool:
        with self._lock:
            self.num_cancel_polls += 1
            if self.finished.is_set():
                self.violations.append("is_cancelled after the final response")
        self.on_is_cancelled()
        if self.cancelled:
            self._left_s = time.perf_counter()
        return self.cancelled


class InferenceRequest:
    def __init__(
        self,
        inputs: list[Tensor],
        requested_output_names: list[str],
        parameters: dict[str, Any] | None = None,
        timeout_us: int = 0,
    ) -> None:
        self.sender = ResponseSender()
        self._inputs, self._names = inputs, requested_output_names
        self._parameters, self._timeout_us = parameters or {}, timeout_us

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._names

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def timeout(self) -> int:
        return self._timeout_us

    def get_response_sender(self) -> ResponseSender:
        return self.sender


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


class Metric:
    def __init__(self, kind: str) -> None:
        self._kind, self._value, self.num_calls = kind, 0.0, 0

    def increment(self, value: float) -> None:
        if self._kind == MetricFamily.COUNTER and value < 0:
            raise TritonModelException("a counter cannot decrease")
        self.num_calls += 1
        self._value += value

    def set(self, value: float) -> None:
        if self._kind != MetricFamily.GAUGE:
            raise TritonModelException("only a gauge can be set")
        self.num_calls += 1
        self._value = value

    def value(self) -> float:
        return self._value


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"
    created: "list[MetricFamily]" = []  # noqa: RUF012 (the test's window on all of them)

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        self.name, self.kind = name, kind
        self.metrics: dict[frozenset[tuple[str, str]], Metric] = {}
        self.created.append(self)

    def Metric(self, labels: dict[str, str]) -> Metric:
        key = frozenset(labels.items())
        assert key not in self.metrics, "the real one refuses a second metric of equal labels"
        self.metrics[key] = Metric(self.kind)
        return self.metrics[key]
