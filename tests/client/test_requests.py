"""From arguments to tensors, in both forms of the contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from octavo_client import Client, InvalidRequestError, RequestOptions, SamplingParameters
from octavo_client._types import SamplingOptions
from tests.client.scripted_server import ScriptedServer


@pytest.fixture(params=[True, False], ids=["batched", "flat"])
def either_form(request: pytest.FixtureRequest) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer(batched=request.param)
    yield scripted
    scripted.stop()


def test_shapes_follow_the_form_of_the_model(either_form: ScriptedServer) -> None:
    with Client(either_form.url) as client:
        assert client.generate([5, 6, 7]).text == "Hello, world"
        assert client.generate("Say hello").text == "Hello, world"

    by_ids, by_text = either_form.received
    batch = [1] if either_form.batched else []
    assert by_ids.shapes["input_ids"] == [*batch, 3]
    assert by_ids.inputs["input_ids"] == [5, 6, 7]
    assert set(map(tuple, by_text.shapes.values())) == {(*batch, 1)}
    assert either_form.metadata_queries == 1


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
    request = server.last.request
    assert [output.name for output in request.outputs] == [
        "text_output", "finish_reason", "num_input_tokens", "num_output_tokens",
    ]  # fmt: skip
    assert request.model_name == "llm"
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert "priority" not in request.parameters
    assert "timeout" not in request.parameters


def test_extra_outputs_are_requested_only_when_asked_for(
    client: Client, server: ScriptedServer
) -> None:
    client.generate("Say hello", logprobs=0, return_token_ids=True)

    asked = {name for name in server.last.inputs if name.startswith("return_")}
    assert {"return_logprobs", "return_cumulative_logprob", "return_token_ids"} <= asked
    outputs = {output.name for output in server.last.request.outputs}
    assert {"logprobs", "cumulative_logprob", "token_ids"} <= outputs


def test_only_sampling_parameters_that_are_set_are_sent(
    client: Client, server: ScriptedServer
) -> None:
    base = SamplingParameters(temperature=0.0, max_tokens=7, stop="\n", tenant="acme")

    client.generate("Say hello", base, max_tokens=9, stop_token_ids=(1, 2), cache=False)

    assert server.last.sampling == {
        "temperature": 0.0, "max_tokens": 9, "stop": ["\n"], "tenant": "acme",
        "stop_token_ids": [1, 2], "cache": False,
    }  # fmt: skip


def test_priority_goes_into_the_json_and_into_tritons_field(
    client: Client, server: ScriptedServer
) -> None:
    client.generate("Say hello", priority=1)

    assert server.last.sampling == {"priority": 1}
    assert server.last.request.parameters["priority"].uint64_param == 1


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

    assert server.last.request.model_version == "2"
    assert server.last.request.id == "r1"
    assert server.last.metadata["x-token"] == "secret"


def test_header_that_crashes_servers_is_not_sent(client: Client, server: ScriptedServer) -> None:
    client.generate("Say hello")

    assert "triton_grpc_error" not in server.last.metadata


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


@pytest.mark.parametrize("url", ["http://localhost:8000", ""])
def test_url_must_be_host_and_port(url: str) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        Client(url)


def test_keyword_arguments_are_the_fields_of_sampling_parameters() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(SamplingParameters)}
    keywords = {
        name: reference.__forward_arg__
        for name, reference in SamplingOptions.__annotations__.items()
    }

    assert keywords == fields
    assert RequestOptions.__annotations__.keys() - fields.keys() == {
        "timeout", "return_token_ids", "request_id",
    }  # fmt: skip
