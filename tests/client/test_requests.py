"""From arguments to what the server gets, over both protocols."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from octavo_client import Client, InvalidRequestError, RequestOptions, SamplingParameters
from octavo_client._types import SamplingOptions
from tests.client.scripted_server import ScriptedServer


def test_plain_request_asks_for_text_finish_reason_and_counts(
    client: Client, server: ScriptedServer
) -> None:
    list(client.stream("Grüß Gott"))

    assert server.last.inputs == {
        "text_input": "Grüß Gott",
        "stream": True,
        "exclude_input_in_output": True,
        "sampling_parameters": "{}",
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    assert server.last.wanted == {
        "text_output", "finish_reason", "num_input_tokens", "num_output_tokens",
    }  # fmt: skip


def test_extra_outputs_are_requested_only_when_asked_for(
    client: Client, server: ScriptedServer
) -> None:
    client.generate("Say hello", logprobs=0, return_token_ids=True)

    asked = {name for name in server.last.inputs if name.startswith("return_")}
    assert {"return_logprobs", "return_cumulative_logprob", "return_token_ids"} <= asked
    assert {"logprobs", "cumulative_logprob", "token_ids"} <= server.last.wanted
    assert "return_prompt_logprobs" not in asked


def test_only_sampling_parameters_that_are_set_are_sent(
    client: Client, server: ScriptedServer
) -> None:
    base = SamplingParameters(temperature=0.0, max_tokens=7, stop="\n", tenant="acme")

    client.generate("Say hello", base, max_tokens=9, stop_token_ids=(1, 2), cache=False)

    assert server.last.sampling == {
        "temperature": 0.0, "max_tokens": 9, "stop": ["\n"], "tenant": "acme",
        "stop_token_ids": [1, 2], "cache": False,
    }  # fmt: skip


def test_every_sampling_parameter_takes_its_place_in_the_json(
    client: Client, server: ScriptedServer
) -> None:
    given: dict[str, Any] = {
        "n": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
        "allowed_token_ids": [1, 2], "bad_words": ["a", "b"], "seed": 3, "max_tokens": 9,
        "min_tokens": 1, "stop": ["."], "include_stop_str_in_output": True,
        "stop_token_ids": [5], "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 1,
        "skip_special_tokens": False, "priority": 1, "deadline_ms": 5000, "tenant": "t",
        "cache": False,
    }  # fmt: skip
    assert {*given, "logit_bias"} == set(SamplingParameters.__dataclass_fields__)

    client.generate("Say hello", logit_bias={7: -100, 8: 1.5}, **given)

    assert server.last.sampling == {**given, "logit_bias": {"7": -100, "8": 1.5}}


def test_one_text_is_a_list_of_one(client: Client, server: ScriptedServer) -> None:
    client.generate("Say hello", bad_words="damn", stop="end")

    assert server.last.sampling == {"bad_words": ["damn"], "stop": ["end"]}


def test_token_ids_may_be_any_integers(client: Client, server: ScriptedServer) -> None:
    client.generate(list(np.array([5, 6], np.int64)))
    client.generate([7])

    by_array, alone = server.received
    assert by_array.inputs["input_ids"] == [5, 6]
    assert alone.inputs["input_ids"] == 7


def test_token_ids_that_are_none_are_refused_at_once(client: Client) -> None:
    with pytest.raises(TypeError, match="float"):
        client.stream([1.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"prompt\[1\] is 2147483648; a token id has 32 bits"):
        client.stream([5, 2**31])


def test_chat_sends_messages_instead_of_text(client: Client, server: ScriptedServer) -> None:
    messages = [{"role": "user", "content": "Grüß Gott"}]

    assert client.chat(messages).text == "Hello, world"
    assert server.last.inputs["messages"] == '[{"role": "user", "content": "Grüß Gott"}]'
    assert "text_input" not in server.last.inputs

    assert "".join(chunk.text for chunk in client.stream_chat(messages)) == "Hello, world"
    assert server.last.inputs["stream"] is True


def test_model_version_request_id_and_headers_are_sent(server: ScriptedServer) -> None:
    with Client(server.url, model_version="2", headers={"X-Token": "secret"}) as client:
        client.generate("Say hello", request_id="r1")

    assert server.last.model_version == "2"
    assert server.last.request_id == "r1"
    assert server.last.metadata["x-token"] == "secret"


def test_model_that_takes_no_text_is_refused(client: Client, server: ScriptedServer) -> None:
    server.takes_text = False

    with pytest.raises(InvalidRequestError, match="'llm' has no input 'text_input'"):
        client.generate("Say hello")


def test_unknown_argument_is_a_type_error_at_once(client: Client) -> None:
    with pytest.raises(TypeError, match="'temprature'"):
        client.stream("Say hello", temprature=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_timeout_must_be_a_positive_number(client: Client, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        client.stream("Say hello", timeout=timeout)
    with pytest.raises(ValueError, match="timeout is"):
        Client(timeout=timeout)


def test_keyword_arguments_are_the_fields_of_sampling_parameters() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(SamplingParameters)}
    keywords = {
        name: reference.__forward_arg__
        for name, reference in SamplingOptions.__annotations__.items()
    }

    assert keywords == fields
    assert RequestOptions.__annotations__.keys() - fields.keys() == {
        "timeout", "return_token_ids", "return_cost", "request_id",
    }  # fmt: skip
