"""The exceptions of octavo_client and how a server's status becomes one of them.

* OctavoError
  x InvalidRequestError      the request is wrong: sending it again cannot help
    - UnknownModelError      the server has no model of that name or version
  x RejectedError            the queue is full: the server did no work, try again later
  x RequestTimeoutError      a deadline passed, on the server or here
  x UnavailableError         no connection, a server that is starting or stopping, a dead model
  x RequestCancelledError    the generation was cancelled, and not by leaving its iterator
  x ServerError              the server failed, or broke the protocol

Triton puts only a text into an error on a stream, not its status. So the text decides where it is
known: Triton's own texts, and those of an Octavo model ("top_p: got 7; must be at most 1").
Otherwise a gRPC status decides, which failed connections and some proxies give. An HTTP status
counts as the gRPC status that it stands for, so that both transports raise the same.
"""

from __future__ import annotations

import re


class OctavoError(Exception):
    """Base of every error that this library raises for a request.

    `message` is the server's text; `status` is the gRPC status name ("UNAVAILABLE") where the
    error came with one, else None. Over HTTP it is what the HTTP status stands for; Triton's 400
    is "INVALID_ARGUMENT" for a cancelled request too.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class InvalidRequestError(OctavoError):
    """The server refused an argument; the message names the field, its value and the limit."""


class UnknownModelError(InvalidRequestError):
    """The server has no model with this name or version."""


class RejectedError(OctavoError):
    """The server's queue is full and it did not take the request."""


class RequestTimeoutError(OctavoError):
    """The deadline passed before the answer was complete."""


class UnavailableError(OctavoError):
    """The server or the model cannot be reached, is starting, is stopping or has died."""


class RequestCancelledError(OctavoError):
    """The generation was cancelled by the server, a proxy or a closing client."""


class ServerError(OctavoError):
    """The server failed while it worked on the request, or its answer broke the protocol."""


_BY_STATUS: dict[str, type[OctavoError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "ALREADY_EXISTS": InvalidRequestError,
    "UNIMPLEMENTED": InvalidRequestError,
    "UNAUTHENTICATED": InvalidRequestError,
    "PERMISSION_DENIED": InvalidRequestError,
    "NOT_FOUND": UnknownModelError,
    "RESOURCE_EXHAUSTED": RejectedError,
    "DEADLINE_EXCEEDED": RequestTimeoutError,
    "UNAVAILABLE": UnavailableError,
    "CANCELLED": RequestCancelledError,
    "INTERNAL": ServerError,
    "UNKNOWN": ServerError,
    "ABORTED": ServerError,
    "DATA_LOSS": ServerError,
}

# As google.rpc.Code pairs them, with those that only proxies give.
_BY_HTTP_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

# Searched in this order. The first may quote a caller's value, which could hold any of the
# others; "unknown model ... has no available versions" is a model that is being (un)loaded.
_BY_TEXT: tuple[tuple[re.Pattern[str], type[OctavoError]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), error)
    for pattern, error in (
        (r"^\S+: got .*; ", InvalidRequestError),
        (r"^Error generating stream: When streaming, ", InvalidRequestError),
        (r"Exceeds maximum queue size", RejectedError),
        (r"Request timeout expired", RequestTimeoutError),
        (r"Request was cancelled", RequestCancelledError),
        (r"is not healthy", UnavailableError),
        (r"shutting down", UnavailableError),
        (r"^the engine has failed", UnavailableError),
        (r"^Request for unknown model.* has no available versions", UnavailableError),
        (r"^Request for unknown model", UnknownModelError),
        (r"^unexpected (shape for input|inference (input|output))", InvalidRequestError),
        (r"^inference input .*data-type", InvalidRequestError),
        (r"^expected \d+ .*inputs? ", InvalidRequestError),
    )
)

_REQUEST_ID_PREFIX = re.compile(r"^\[request id: [^\]]*\]\s*")


def error_from_status(status: str | None, text: str) -> OctavoError:
    """The exception for a gRPC status name, None where only a text came, and the error's text."""
    message = _REQUEST_ID_PREFIX.sub("", text).strip() or str(status)
    for pattern, error in _BY_TEXT:
        if pattern.search(message):
            return error(message, status=status)
    return _BY_STATUS.get(status or "", ServerError)(message, status=status)


def status_from_http(code: int) -> str:
    """The gRPC status name for an HTTP status that is not 2xx."""
    of_its_kind = "INVALID_ARGUMENT" if 400 <= code < 500 else "INTERNAL"
    return _BY_HTTP_STATUS.get(code, of_its_kind)
