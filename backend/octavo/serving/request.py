"""From an incoming request to a checked InferenceRequest."""

import json
from dataclasses import dataclass, replace
from typing import Any

from octavo import sampling_params
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams
from octavo.serving import wire
from octavo.serving.incoming import IncomingRequest
from octavo.serving.tokenizer import Tokenizer

_PROMPTS = (wire.TEXT_INPUT, wire.MESSAGES, wire.INPUT_IDS)
_JSON_TYPES = {dict: "object", list: "array"}


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Everything that is read of one request."""

    prompt_token_ids: list[int]
    prompt_text: str  # what is prepended to the answer, "" if nothing is
    params: SamplingParams
    bad_words: tuple[tuple[int, ...], ...]  # of `params`, as token ids
    stream: bool
    outputs: frozenset[str]  # the names to send
    shows_logprobs: bool  # false: the caller named no `logprobs`, whatever `params` has
    batched: bool  # outputs need a batch dimension


class RequestReader:
    """Reads and checks requests for one model."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len

    def read(self, request: IncomingRequest) -> InferenceRequest:
        """Raises InvalidRequestError naming field, value and limit."""
        params = _sampling_params(request)
        stream = _flag(request, wire.STREAM) or False
        if stream and request.unary:
            raise InvalidRequestError(
                wire.STREAM, "true", "only false is allowed here: this model answers once"
            )
        exclude_input = _flag(request, wire.EXCLUDE_INPUT)
        if stream and exclude_input is False:
            raise InvalidRequestError(
                wire.EXCLUDE_INPUT, "false", "only true is allowed when streaming",
                message=wire.NO_PROMPT_IN_STREAM,
            )  # fmt: skip
        outputs = _wanted_outputs(request)
        # The cumulative log probability needs each token's own, asked for or not.
        shows_logprobs = params.logprobs is not None
        if not shows_logprobs and wire.CUMULATIVE_LOGPROB in outputs:
            params = replace(params, logprobs=0)
        prepend = not stream and not exclude_input
        token_ids, text = self._prompt(request, need_text=prepend)
        return InferenceRequest(
            prompt_token_ids=token_ids,
            prompt_text=text if prepend else "",
            params=params,
            bad_words=self._tokenizer.bad_words_token_ids(params.bad_words),
            stream=stream,
            outputs=outputs,
            shows_logprobs=shows_logprobs,
            batched=request.batched,
        )

    def _prompt(self, request: IncomingRequest, *, need_text: bool) -> tuple[list[int], str]:
        given = [name for name in _PROMPTS if name in request.inputs]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise InvalidRequestError(
                "prompt", got, f"exactly one of {', '.join(_PROMPTS)} is needed"
            )
        if given[0] == wire.INPUT_IDS:
            tensor = request.inputs[wire.INPUT_IDS]
            if request.batched and tensor.ndim > 1 and tensor.shape[0] > 1:
                raise _one_per_request(wire.INPUT_IDS, tensor.shape)
            ids: list[int] = tensor.reshape(-1).tolist()
            if min(ids, default=0) < 0:  # the tokenizer cannot take these; others are the engine's
                raise InvalidRequestError(wire.INPUT_IDS, min(ids), "token ids begin at 0")
            fits = len(ids) < self._max_model_len  # else the engine refuses them
            return ids, self._tokenizer.decode(ids) if need_text and fits else ""
        text = _text(request, given[0]) or ""
        if given[0] == wire.MESSAGES:
            rendered = self._tokenizer.render_chat(_messages(text))
            return self._encode(wire.MESSAGES, rendered, add_special_tokens=False), rendered
        return self._encode(wire.TEXT_INPUT, text, add_special_tokens=True), text

    def _encode(self, field: str, text: str, *, add_special_tokens: bool) -> list[int]:
        if not text:
            raise InvalidRequestError(field, "an empty text", "at least 1 character is needed")
        # Tokenizing holds up admission; what cannot fit is refused by its size.
        size, limit = len(text.encode()), self._max_model_len * self._tokenizer.longest_token_bytes
        if size > limit:
            raise InvalidRequestError(
                field, f"{size} bytes",
                f"at most {limit}: the context is {self._max_model_len} tokens of up to "
                f"{self._tokenizer.longest_token_bytes} bytes",
            )  # fmt: skip
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _sampling_params(request: IncomingRequest) -> SamplingParams:
    """From the JSON tensor; if it is absent, from the request's own parameters."""
    text = _text(request, wire.SAMPLING_PARAMETERS)
    if text is None:
        # Triton's own: flags of its protocol, and the `id` that /generate takes for a parameter.
        return sampling_params.parse(
            {k: v for k, v in request.parameters.items() if k != "id" and k[:7] != "triton_"}
        )
    values = _json(wire.SAMPLING_PARAMETERS, text) if text.strip() else {}
    if not isinstance(values, dict):
        raise InvalidRequestError(wire.SAMPLING_PARAMETERS, text, "a JSON object is expected")
    return sampling_params.parse(values)


def _messages(text: str) -> list[dict[str, Any]]:
    messages = _json(wire.MESSAGES, text)
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            wire.MESSAGES, text, "a JSON array of at least 1 message is expected"
        )
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise InvalidRequestError(
                    f"messages[{index}]", message, f'an object with a text "{key}" is expected'
                )
    return messages


def _json(field: str, text: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # an escape can name half a character, which is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(field, text, f"JSON is expected ({exc})") from None


def _wanted_outputs(request: IncomingRequest) -> frozenset[str]:
    """The outputs that the caller requested and, beyond the text, switched on.

    Only these become tensors: the 2.51 server drops tensors that were not requested without
    holding the GIL.
    """
    flagged = {name for name, flag in wire.RETURN_FLAGS.items() if _flag(request, flag)}
    return request.requested_outputs & (flagged | {wire.TEXT_OUTPUT})


def _flag(request: IncomingRequest, name: str) -> bool | None:
    value = _single(request, name)
    return None if value is None else bool(value)


def _text(request: IncomingRequest, name: str) -> str | None:
    value = _single(request, name)
    if value is None:
        return None
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as exc:
        at = f"byte {value[exc.start]:#04x} at offset {exc.start}"
        raise InvalidRequestError(name, at, "UTF-8 text is expected") from None


def _single(request: IncomingRequest, name: str) -> Any:
    """The one element of an input, whatever its rank; None if the input is absent."""
    values = request.inputs.get(name)
    if values is None:
        return None
    if values.size != 1:
        raise _one_per_request(name, values.shape)
    return values.reshape(-1)[0]


def _one_per_request(name: str, shape: tuple[int, ...]) -> InvalidRequestError:
    return InvalidRequestError(name, f"shape {list(shape)}", "one element per request is expected")
