"""The generate extension: JSON over HTTP, one answer or server-sent events."""

from typing import Any

import pytest

from tests.contract.calls import GREEDY, PROMPT, Server, events

pytestmark = pytest.mark.e2e

SAMPLING = {"temperature": 0, "ignore_eos": True, "max_tokens": 20}


@pytest.fixture
def text(server: Server) -> str:
    """What the model says after PROMPT with SAMPLING."""
    return server.infer(sampling={**GREEDY, "max_tokens": 20}, stream=True).text


def test_generate_answers_scalars_with_scalars(server: Server, text: str) -> None:
    flags = {"return_finish_reason": True, "return_num_input_tokens": True}
    response = server.post("generate", {"text_input": PROMPT, **SAMPLING, **flags})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.pop("num_input_tokens") > 1
    assert body == {
        "model_name": "llm",
        "model_version": "1",
        "finish_reason": "length",
        "text_output": PROMPT + text,
    }


@pytest.mark.parametrize(
    "placed",
    [
        SAMPLING,
        {"parameters": SAMPLING},
        {"max_tokens": "20", "parameters": {"temperature": 0.0, "ignore_eos": True}},
        {"sampling_parameters": '{"temperature": "0", "ignore_eos": true, "max_tokens": "20"}'},
    ],
    ids=["top level", "under parameters", "both, one as text", "as one JSON text"],
)
def test_generate_takes_sampling_parameters(
    server: Server, text: str, placed: dict[str, Any]
) -> None:
    body = {"text_input": PROMPT, "exclude_input_in_output": True, **placed}
    assert server.post("generate", body).json()["text_output"] == text


def test_generate_takes_inputs_under_parameters(server: Server, text: str) -> None:
    flags = {"exclude_input_in_output": True, "return_num_output_tokens": True}
    body = server.post("generate", {"text_input": PROMPT, "parameters": {**SAMPLING, **flags}})
    assert body.json()["text_output"] == text
    assert body.json()["num_output_tokens"] == 20


def test_generate_takes_an_id(server: Server, text: str) -> None:
    response = server.post("generate", {"text_input": PROMPT, "id": "my request", **SAMPLING})
    assert response.json()["text_output"] == PROMPT + text


def test_generate_takes_and_gives_token_ids(server: Server) -> None:
    given = {"input_ids": [5, 6, 7], "return_token_ids": True, "exclude_input_in_output": True}
    body = server.post("generate", {**given, **SAMPLING}).json()
    assert len(body["token_ids"]) == 20


def test_generate_stream_sends_events(server: Server, text: str) -> None:
    body = {"text_input": PROMPT, "stream": True, "return_finish_reason": True, **SAMPLING}
    response = server.post("generate_stream", body)
    assert response.status_code == 200
    parts = events(response)
    assert len(parts) > 1
    assert "".join(part["text_output"] for part in parts) == text
    reasons = [part["finish_reason"] for part in parts]
    assert reasons == ["None"] * (len(parts) - 1) + ["length"]


def test_generate_stream_sends_one_event_when_not_streaming(server: Server, text: str) -> None:
    (event,) = events(server.post("generate_stream", {"text_input": PROMPT, **SAMPLING}))
    assert event["text_output"] == PROMPT + text


def test_generate_says_that_it_cannot_stream(server: Server) -> None:
    # Long enough that even a sender that is far behind cannot send all of it as one response.
    long = {**SAMPLING, "max_tokens": 400}
    response = server.post("generate", {"text_input": PROMPT, "stream": True, **long})
    assert response.json()["error"].startswith("generate expects model to produce exactly 1")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown parameter": ({"beams": 2}, "beams: got 2; unknown parameter; known: "),
    "a bad value": ({"top_p": 2}, "top_p: got 2; should be less than or equal to 1"),
    "a list as a parameter": ({"stop": ["a"]}, "parameter 'stop' has invalid type"),
    "an empty prompt": ({"text_input": ""}, "text_input: got an empty text; at least 1"),
    "a second prompt": ({"messages": "[]"}, "prompt: got text_input and messages; exactly one"),
    "malformed sampling parameters": (
        {"sampling_parameters": "{"}, "sampling_parameters: got {; JSON is expected"
    ),
    "too many tokens": ({"max_tokens": 10**6}, "max_tokens: got 1000000; at most "),
    "the prompt in a stream": (
        {"stream": True, "exclude_input_in_output": False},
        "Error generating stream: When streaming, `exclude_input_in_output` = False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
@pytest.mark.parametrize("name", BAD)
def test_generate_answers_400_to(server: Server, name: str, route: str) -> None:
    body, message = BAD[name]
    response = server.post(route, {"text_input": PROMPT, **body})
    assert response.status_code == 400
    is_event = response.headers["content-type"].startswith("text/event-stream")
    error = events(response)[0] if is_event else response.json()
    assert list(error) == ["error"] and error["error"].startswith(message)


def test_generate_answers_400_to_many_prompts(batched: Server) -> None:
    response = batched.post("generate", {"text_input": ["a", "b"]})
    assert response.status_code == 400
    assert response.json()["error"].startswith("text_input: got shape [2, 1]; one element")
