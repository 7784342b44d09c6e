"""Octavo's tensors in Triton's gRPC messages: pure functions, shared by the two gRPC transports."""

from __future__ import annotations

import struct
from typing import Any

from tritonclient.grpc import service_pb2

from ._errors import error_from_status
from ._tensors import ModelForm, read_outputs, reading, request_tensors, wanted_outputs
from ._transport import GenerationRequest, Response

# Without it a stream whose last message is only a flag would end without that message.
_WANT_EMPTY_FINAL = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"


def model_form(metadata: Any) -> ModelForm:
    """What a ModelMetadataResponse says; raises InvalidRequestError if it takes no text."""
    return ModelForm.of(metadata.name, {tensor.name: tensor.shape for tensor in metadata.inputs})


def encode_request(request: GenerationRequest, form: ModelForm, timeout: float | None) -> Any:
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
    for name, datatype, values in request_tensors(request, form, timeout):
        shape = [1, len(values)] if form.batched else [len(values)]
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        encoded = [value.encode() if isinstance(value, str) else value for value in values]
        getattr(tensor.contents, _CONTENTS[datatype]).extend(encoded)
    for output in ("text_output", *wanted_outputs(request, form)):
        message.outputs.add(name=output)
    return message


_CONTENTS = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "INT32": "int_contents"}


def is_terminal(message: Any) -> bool:
    """Whether a ModelStreamInferResponse ends its request, so that the server closes the stream.

    An error that Triton's front end found has no flag, but nothing follows it.
    """
    parameters = message.infer_response.parameters
    if _FINAL in parameters:
        return bool(parameters[_FINAL].bool_param)
    return bool(message.error_message)


def decode_response(message: Any) -> list[Response]:
    """The Responses in a ModelStreamInferResponse; raises the OctavoError that it carries."""
    if message.error_message:
        raise error_from_status(None, message.error_message)
    inferred = message.infer_response
    with reading():
        return read_outputs(
            {
                tensor.name: _decode_tensor(tensor.datatype, raw)
                for tensor, raw in zip(inferred.outputs, inferred.raw_output_contents, strict=True)
            }
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
