"""What a request holds and what an answer says, as tensors: the same over gRPC and over HTTP."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from ._errors import InvalidRequestError, ServerError
from ._transport import GenerationRequest, Response
from ._types import Cost, Logprob, PromptLogprobs, TokenLogprobs

Outputs = Mapping[str, Sequence[Any]]
"""The elements of each output tensor, by its name."""


class Tensor(NamedTuple):
    """One input. Texts are str here."""

    name: str
    datatype: Literal["BYTES", "BOOL", "INT32"]
    values: Sequence[str] | Sequence[bool] | Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelForm:
    """What a model's metadata says of its contract."""

    batched: bool
    """Tensors have a batch dimension: [1, 1] instead of [1]."""
    counts_cached_tokens: bool
    """It has the output `cached_tokens`."""

    @classmethod
    def of(cls, model: str, shapes: Mapping[str, Sequence[int]]) -> ModelForm:
        """From the shapes of its inputs; raises InvalidRequestError if it does not take text."""
        if "text_input" not in shapes:
            raise InvalidRequestError(f"model {model!r} has no input 'text_input'")
        return cls(
            batched=len(shapes["text_input"]) == 2,
            counts_cached_tokens="return_cached_tokens" in shapes,
        )


def request_tensors(
    request: GenerationRequest, form: ModelForm, timeout: float | None
) -> list[Tensor]:
    """The inputs of a request whose caller waits `timeout` seconds."""
    tensors = [
        Tensor("stream", "BOOL", [request.stream]),
        Tensor("exclude_input_in_output", "BOOL", [True]),
        Tensor("sampling_parameters", "BYTES", [json.dumps(request.sampling_json(timeout))]),
    ]
    if request.text is not None:
        tensors.append(Tensor("text_input", "BYTES", [request.text]))
    if request.messages is not None:
        messages = json.dumps([dict(m) for m in request.messages], ensure_ascii=False)
        tensors.append(Tensor("messages", "BYTES", [messages]))
    if request.input_ids is not None:
        tensors.append(Tensor("input_ids", "INT32", request.input_ids))
    for output in wanted_outputs(request, form):
        tensors.append(Tensor(f"return_{output}", "BOOL", [True]))
    return tensors


def wanted_outputs(request: GenerationRequest, form: ModelForm) -> list[str]:
    """The outputs to ask for beside `text_output`, which always comes."""
    outputs = ["finish_reason", "num_input_tokens", "num_output_tokens"]
    if request.sampling.logprobs is not None:
        outputs += ["logprobs", "cumulative_logprob"]
    if request.sampling.prompt_logprobs is not None:
        outputs.append("prompt_logprobs")
    if request.return_token_ids:
        outputs.append("token_ids")
    if request.return_cost:
        outputs.append("cost")
    if form.counts_cached_tokens:
        outputs.append("cached_tokens")
    return outputs


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What goes wrong while a message is read is the server's fault: ServerError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as exc:
        raise ServerError(f"cannot read the server's response: {exc}") from exc


def read_outputs(outputs: Outputs) -> list[Response]:
    """One Response for each choice. Raises ValueError and others for what breaks the contract."""
    texts = outputs.get("text_output", ())
    n = len(texts)

    def each(name: str, default: Any) -> Sequence[Any]:
        values = outputs.get(name, (default,) * n)
        if len(values) != n:
            raise ValueError(f"{name} has {len(values)} elements for {n} choices")
        return values

    counts = each("num_output_tokens", None)
    columns = zip(
        texts,
        each("finish_reason", "None"),
        counts,
        _split(outputs.get("token_ids"), counts),
        each("logprobs", "null"),
        each("cumulative_logprob", None),
        strict=True,
    )
    return [
        Response(
            text=text,
            finish_reason=None if finish_reason == "None" else finish_reason,
            num_input_tokens=_first(outputs, "num_input_tokens"),
            num_output_tokens=count,
            token_ids=token_ids,
            logprobs=_logprobs(logprobs),
            cumulative_logprob=cumulative_logprob,
            index=index,
            prompt_logprobs=_prompt_logprobs(outputs) if index == 0 else None,
            cached_tokens=_first(outputs, "cached_tokens"),
            cost=_cost(outputs),
        )
        for index, (text, finish_reason, count, token_ids, logprobs, cumulative_logprob) in (
            enumerate(columns)
        )
    ]


def _first(outputs: Outputs, name: str) -> Any:
    values = outputs.get(name)
    return values[0] if values else None


def _split(
    token_ids: Sequence[int] | None, counts: Sequence[int | None]
) -> list[tuple[int, ...] | None]:
    """The ids of each choice; those of several come one after another."""
    if token_ids is None:
        return [None] * len(counts)
    if len(counts) == 1:
        return [tuple(token_ids)]
    sizes = [count or 0 for count in counts]
    if sum(sizes) != len(token_ids):
        raise ValueError(f"token_ids has {len(token_ids)} elements, num_output_tokens {sizes}")
    remaining = iter(token_ids)
    return [tuple(itertools.islice(remaining, size)) for size in sizes]


def _logprobs(text: str) -> tuple[TokenLogprobs, ...] | None:
    """A JSON list with one object for each new token, or null."""
    positions = json.loads(text)
    return None if positions is None else tuple(_candidates(position) for position in positions)


def _prompt_logprobs(outputs: Outputs) -> PromptLogprobs | None:
    """The same for the prompt's tokens, where null stands for the first."""
    positions = json.loads(_first(outputs, "prompt_logprobs") or "null")
    if positions is None:
        return None
    return tuple(None if position is None else _candidates(position) for position in positions)


def _cost(outputs: Outputs) -> Cost | None:
    """A JSON object in the last response, null before. What newer servers add is left out."""
    receipt = json.loads(_first(outputs, "cost") or "null")
    if receipt is None:
        return None
    return Cost(**{field.name: receipt[field.name] for field in fields(Cost)})


def _candidates(position: Mapping[str, Any]) -> TokenLogprobs:
    return {
        int(token_id): Logprob(entry["logprob"], entry.get("rank"), entry.get("decoded_token"))
        for token_id, entry in position.items()
    }
