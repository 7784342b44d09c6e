"""What is taken of a Triton request, and how its responses go back.

A request reaches the engine's process from Triton, or from the front of the unary model, which
runs in a process of its own: from here on both are alike.
"""

import json
import logging
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from octavo.serving import wire

log = logging.getLogger(__name__)


class ErrorCode(str, Enum):
    """Names of Triton's error codes."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A copy of everything that a request has; nothing of Triton's memory is kept."""

    inputs: dict[str, NDArray[Any]]
    parameters: dict[str, Any]
    requested_outputs: frozenset[str]
    timeout_s: float  # the caller's, which Triton counts in its queue only; 0 is none
    batched: bool  # tensors have a batch dimension
    unary: bool  # answered by exactly one response


class Sender(Protocol):
    """The way back of one request."""

    def send(self, outputs: dict[str, NDArray[Any]], *, is_final: bool) -> None: ...

    def fail(self, message: str, code: ErrorCode) -> None:
        """The final response, an error. Never raises: a fault on this way out must not reach the
        neighbours."""
        ...

    def is_cancelled(self) -> bool: ...


def copy_request(request: Any, *, batched: bool, unary: bool) -> IncomingRequest:
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in wire.INPUTS}
    return IncomingRequest(
        inputs={n: tensor.as_numpy().copy() for n, tensor in tensors.items() if tensor is not None},
        parameters=json.loads(request.parameters() or "{}"),
        requested_outputs=frozenset(request.requested_output_names()),
        timeout_s=request.timeout() / 1e6,
        batched=batched,
        unary=unary,
    )


class TritonSender:
    """Over the response sender of a Triton request."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()

    def send(self, outputs: dict[str, NDArray[Any]], *, is_final: bool) -> None:
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_final else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)

    def fail(self, message: str, code: ErrorCode) -> None:
        try:
            error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code.value))
            response = pb_utils.InferenceResponse(error=error)
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:
            log.exception("an error could not be sent: %s", message)

    def is_cancelled(self) -> bool:
        """Costs a round trip between processes. Not to be asked after the final response: that
        has crashed servers."""
        return bool(self._sender.is_cancelled())
