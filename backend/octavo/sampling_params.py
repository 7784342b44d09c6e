"""Sampling parameters: their names, types, bounds and defaults, declared once."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from octavo.config import Integer, Number
from octavo.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_BAD_WORDS = 128
MAX_TOKEN_IDS = 2**18  # in one list


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _object_or_text(value: object) -> object:
    # Parameters of a Triton request are scalars: an object comes as JSON text there.
    return from_json(value) if isinstance(value, str) else value


ShortText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS, strict=True)]
TokenId = Annotated[Integer, Field(ge=0)]  # the engine knows the vocabulary
Penalty = Annotated[Number, Field(ge=-2.0, le=2.0)]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SamplingParams:
    """How one request is decoded. Numbers may come as text ("0.7"), as vllm_backend's clients
    send them. Defaults are vllm_backend's.

    What a field does, in the order in which a step applies them to the logits:

    allowed_token_ids   no other token is chosen
    bad_words           the last token of each text's tokens is not chosen after the others
    min_tokens          no end of sequence and no stop token before this many
    logit_bias          token id → number added to its logit
    repetition_penalty  logits of tokens seen in prompt or output are divided by it if positive,
                        else multiplied (Keskar et al., 2019, arXiv:1909.05858)
    frequency_penalty   taken off once for each time the token is in the output
    presence_penalty    taken off if the token is in the output
    temperature         0 is greedy
    min_p               tokens less likely than min_p × the likeliest are cut (arXiv:2407.01082)
    top_k, top_p        0 or −1, and 1, are off

    `logprobs` = N asks for each output token's log probability and the N most likely ones,
    `prompt_logprobs` for the same of the prompt's tokens; both are the model's own, before all of
    the above. `n` sequences share the prompt's KV blocks; sequence i of a `seed` draws the same
    whatever `n` is. `deadline_ms` counts from the request's arrival; `priority` 1 is the highest.
    `tenant` names whom the request is accounted to: prefixes are shared within a tenant only.
    `cache` false neither reads the prefix cache nor leaves anything in it.
    """

    n: Annotated[Integer, Field(ge=1, le=4096)] = 1  # the engine's bound is max_num_seqs
    temperature: Annotated[Number, Field(ge=0.0, le=100.0)] = 1.0
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[Integer, Field(ge=-1, le=2**31 - 1)] = 0
    min_p: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0.0, le=100.0)] = 1.0
    max_tokens: Annotated[Integer, Field(ge=1, le=2**31 - 1)] = 16
    min_tokens: Annotated[Integer, Field(ge=0, le=2**31 - 1)] = 0
    stop: Annotated[
        tuple[ShortText, ...], BeforeValidator(_as_list), Field(max_length=MAX_STOPS)
    ] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=256)] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: Annotated[
        tuple[ShortText, ...], BeforeValidator(_as_list), Field(max_length=MAX_BAD_WORDS)
    ] = ()
    logit_bias: Annotated[
        Mapping[TokenId, Annotated[Number, Field(ge=-100.0, le=100.0)]],
        BeforeValidator(_object_or_text),
        Field(max_length=MAX_TOKEN_IDS),
    ] = field(default_factory=dict)
    allowed_token_ids: (
        Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKEN_IDS)] | None
    ) = None
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    skip_special_tokens: bool = True
    priority: Annotated[Integer, Field(ge=1, le=100)] = 2
    deadline_ms: Annotated[Integer, Field(ge=1, le=86_400_000)] | None = None
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$", strict=True)] | None = None
    cache: bool = True

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


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
    name = names[0] + "".join(f"[{part}]" for part in names[1:] if part.isdigit())
    if fault["type"] == "unexpected_keyword_argument":
        return InvalidRequestError(
            name, fault["input"], f"unknown parameter; known: {', '.join(NAMES)}"
        )
    limit = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequestError(name, fault["input"], limit)
