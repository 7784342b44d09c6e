"""Sampling parameters: their names, types, bounds and defaults, declared once."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from octavo.config import Integer, Number
from octavo.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SamplingParams:
    """How one request is decoded. Numbers may come as text ("0.7"), as vllm_backend's clients
    send them. Defaults are vllm_backend's.

    temperature 0 is greedy; top_k 0 or -1 and top_p 1 are off; `logprobs` = N asks for the
    sampled token's log probability and the N most likely ones; `deadline_ms` counts from the
    request's arrival; `priority` 1 is the highest, 2 the default.
    """

    temperature: Annotated[Number, Field(ge=0.0, le=100.0)] = 1.0
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[Integer, Field(ge=-1, le=2**31 - 1)] = 0
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**64)] | None = None
    max_tokens: Annotated[Integer, Field(ge=1, le=2**31 - 1)] = 16
    min_tokens: Annotated[Integer, Field(ge=0, le=2**31 - 1)] = 0
    stop: Annotated[
        tuple[StopString, ...], BeforeValidator(_as_list), Field(max_length=MAX_STOPS)
    ] = ()
    stop_token_ids: Annotated[
        tuple[Annotated[Integer, Field(ge=0)], ...], Field(max_length=256)
    ] = ()
    ignore_eos: bool = False
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    n: Annotated[Integer, Field(ge=1, le=1)] = 1
    priority: Annotated[Integer, Field(ge=1, le=100)] = 2
    deadline_ms: Annotated[Integer, Field(ge=1, le=86_400_000)] | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


_ADAPTER = TypeAdapter(SamplingParams)
NAMES = tuple(SamplingParams.__dataclass_fields__)


def parse(values: dict[str, Any]) -> SamplingParams:
    """The checked parameters of one request.

    Raises InvalidRequestError for the first fault: an unknown name, a wrong type, a value
    out of its bounds, or min_tokens above max_tokens.
    """
    try:
        params = _ADAPTER.validate_python(values)
    except ValidationError as exc:
        raise _first_fault(exc) from None
    if params.min_tokens > params.max_tokens:
        raise InvalidRequestError(
            "min_tokens", params.min_tokens, f"at most max_tokens = {params.max_tokens}"
        )
    return params


def _first_fault(exc: ValidationError) -> InvalidRequestError:
    fault = exc.errors(include_url=False)[0]
    names = [str(part) for part in fault["loc"]]
    field = names[0] + "".join(f"[{part}]" for part in names[1:] if part.isdigit())
    if fault["type"] == "unexpected_keyword_argument":
        return InvalidRequestError(
            field, fault["input"], f"unknown parameter; known: {', '.join(NAMES)}"
        )
    limit = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequestError(field, fault["input"], limit)
