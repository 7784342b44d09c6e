"""Octavo's tensors in Triton's gRPC messages: pure functions, shared by the transports."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from ._errors import InvalidRequestError, ServerError, error_from_status
from ._transport import GenerationRequest, Response
from ._types import Logprob, TokenLogprobs

# Without it a stream whose last message is only a flag would end without that message.
_WANT_EMPTY_FINAL = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"


def is_batched(metadata: Any) -> bool:
    """Whether a ModelMetadataResponse describes the form with a batch dimension, [1, 1].

    Raises InvalidRequestError if the model does not take text.
    """
    for tensor in metadata.inputs:
        if tensor.name == "text_input":
            return len(tensor.shape) == 2
    raise InvalidRequestError(f"model {metadata.name!r} has no input 'text_input'")


def encode_request(request: GenerationRequest, *, batched: bool, timeout: float | None) -> Any:
    """The ModelInferRequest for a request whose caller waits `timeout` seconds."""
    message = service_pb2.ModelInferRequest(
        model_name=request.model, model_version=request.model_version, id=request.request_id
    )
    message.parameters[_WANT_EMPTY_FINAL].bool_param = True
    if request.sampling.priority is not None:
        message.parameters["priority"].uint64_param = request.sampling.priority
    if timeout is not None:
        # In microseconds; Triton drops the request from its queue then.
        message.parameters["timeout"].int64_param = max(1, round(timeout * 1e6))

    def add(name: str, datatype: str, values: Sequence[object]) -> None:
        shape = [1, len(values)] if batched else [len(values)]
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        getattr(tensor.contents, _CONTENTS[datatype]).extend(values)

    if request.text is not None:
        add("text_input", "BYTES", [request.text.encode()])
    if request.messages is not None:
        messages = json.dumps([dict(m) for m in request.messages], ensure_ascii=False)
        add("messages", "BYTES", [messages.encode()])
    if request.input_ids is not None:
        add("input_ids", "INT32", request.input_ids)
    add("stream", "BOOL", [request.stream])
    add("exclude_input_in_output", "BOOL", [True])
    add("sampling_parameters", "BYTES", [json.dumps(request.sampling_json(timeout)).encode()])
    message.outputs.add(name="text_output")
    for output in _wanted_outputs(request):
        add(f"return_{output}", "BOOL", [True])
        message.outputs.add(name=output)
    return message


_CONTENTS = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "INT32": "int_contents"}


def _wanted_outputs(request: GenerationRequest) -> list[str]:
    outputs = ["finish_reason", "num_input_tokens", "num_output_tokens"]
    if request.sampling.logprobs is not None:
        outputs += ["logprobs", "cumulative_logprob"]
    if request.return_token_ids:
        outputs.append("token_ids")
    return outputs


def is_terminal(message: Any) -> bool:
    """Whether a ModelStreamInferResponse ends its request, so that the server closes the stream.

    An error that Triton's front end found has no flag, but nothing follows it.
    """
    parameters = message.infer_response.parameters
    if _FINAL in parameters:
        return bool(parameters[_FINAL].bool_param)
    return bool(message.error_message)


def decode_response(message: Any) -> Response:
    """The Response in a ModelStreamInferResponse; raises the OctavoError that it carries."""
    if message.error_message:
        raise error_from_status(None, message.error_message)
    inferred = message.infer_response
    try:
        outputs = {
            tensor.name: _decode_tensor(tensor.datatype, raw)
            for tensor, raw in zip(inferred.outputs, inferred.raw_output_contents, strict=True)
        }
        return Response(
            text=_first(outputs, "text_output", ""),
            finish_reason=_none_if(_first(outputs, "finish_reason", "None"), "None"),
            num_input_tokens=_first(outputs, "num_input_tokens", None),
            num_output_tokens=_first(outputs, "num_output_tokens", None),
            token_ids=outputs.get("token_ids"),
            logprobs=decode_logprobs(_first(outputs, "logprobs", "null")),
            cumulative_logprob=_first(outputs, "cumulative_logprob", None),
            final=is_terminal(message),
        )
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as exc:
        raise ServerError(f"cannot read the server's response: {exc}") from exc


def decode_logprobs(text: str) -> tuple[TokenLogprobs, ...] | None:
    """The `logprobs` output: a JSON list with one object for each new token, or null."""
    positions = json.loads(text)
    if positions is None:
        return None
    return tuple(
        {
            int(token_id): Logprob(entry["logprob"], entry.get("rank"), entry.get("decoded_token"))
            for token_id, entry in position.items()
        }
        for position in positions
    )


_FORMATS = {"FP32": "f", "UINT32": "I", "INT32": "i", "BOOL": "?"}


def _decode_tensor(datatype: str, raw: bytes) -> tuple[Any, ...]:
    """The elements in the raw form: little-endian, strings behind a 4-byte length."""
    if datatype == "BYTES":
        strings, at = [], 0
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            if at + 4 + size > len(raw):
                raise ValueError(f"a string of {size} bytes in {len(raw) - at - 4}")
            strings.append(raw[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return tuple(strings)
    code = _FORMATS[datatype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)


def _first(outputs: dict[str, tuple[Any, ...]], name: str, default: Any) -> Any:
    values = outputs.get(name)
    return values[0] if values else default


def _none_if(value: str, none: str) -> str | None:
    return None if value == none else value
