"""Octavo's tensors in the JSON of Triton's generate extension: pure functions, shared by the two
HTTP transports.

Triton looks every key of the request up among the model's inputs, gives a value the shape of that
input and takes the quotes off tensors of one element in its answers. So nothing here depends on
the form of the contract.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from ._errors import OctavoError, error_from_status, status_from_http
from ._sse import Event, EventParser
from ._tensors import ModelForm, read_outputs, reading, request_tensors
from ._transport import GenerationRequest, Response

EVENT_STREAM = "text/event-stream"

Message = Mapping[str, Any]
"""One event's JSON object: outputs by name, or "error"."""


def model_path(model: str, version: str) -> str:
    """Where a model is, below the server's URL."""
    versions = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(model, safe='')}{versions}"


def model_form(answer: httpx.Response) -> ModelForm:
    """What the model's metadata says; raises the OctavoError that the answer is instead."""
    if answer.status_code != httpx.codes.OK:
        raise error_from_response(answer)
    with reading():
        metadata = json.loads(answer.content)
        shapes = {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"]}
        name = metadata["name"]
    return ModelForm.of(name, shapes)


def encode_request(request: GenerationRequest, form: ModelForm, timeout: float | None) -> bytes:
    """The body of a POST for a request whose caller waits `timeout` seconds."""
    body: dict[str, Any] = {"id": request.request_id} if request.request_id else {}
    for name, _, values in request_tensors(request, form, timeout):
        body[name] = values[0] if len(values) == 1 else list(values)
    return json.dumps(body, ensure_ascii=False).encode()


def parse_events(events: Iterable[Event]) -> list[Message]:
    """The messages in events. Raises ServerError for one that is no JSON object."""
    with reading():
        return [_parse_object(event.data) for event in events if event.type == "message"]


def _parse_object(text: str) -> Message:
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError(f"{text[:40]} is no JSON object")
    return parsed


def is_terminal(message: Message) -> bool:
    """Whether the message ends its request: an error, or every choice has a finish reason."""
    reasons = _elements(message.get("finish_reason", []))
    return "error" in message or (bool(reasons) and "None" not in reasons)


def decode_message(message: Message) -> list[Response]:
    """The Responses in a message; raises the OctavoError that it carries."""
    if "error" in message:
        # Its status was lost to an answer that had begun. Over gRPC no error has one.
        raise error_from_status(None, str(message["error"]))
    with reading():
        return read_outputs({name: _elements(value) for name, value in message.items()})


def _elements(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def error_from_response(answer: httpx.Response) -> OctavoError:
    """The exception for an answer whose HTTP status is not 200 and whose body has been read.

    Triton says what is wrong in a JSON object, in an event if the model said it; a proxy says
    it in its own way, and then the status must do.
    """
    is_stream = answer.headers.get("content-type", "").startswith(EVENT_STREAM)
    events = EventParser().feed(answer.content) if is_stream else []
    try:
        text = str(json.loads(events[0].data if events else answer.content)["error"])
    except (ValueError, TypeError, KeyError):
        text = f"HTTP status {answer.status_code} {answer.reason_phrase}"
    return error_from_status(status_from_http(answer.status_code), text)
