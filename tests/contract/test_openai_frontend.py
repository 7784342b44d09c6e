"""Triton's OpenAI frontend takes the flat form for vllm_backend: the requests it makes."""

import json
from typing import Any

import pytest

from tests.contract.calls import PROMPT, Server

pytestmark = pytest.mark.e2e


def ask(server: Server, sampling: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """A request of the frontend, and the answer as it reads it."""
    defaults = {
        "stream": False,
        "exclude_input_in_output": True,
        "return_logprobs": False,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    answer = server.infer(sampling=sampling, **{**defaults, **inputs})
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    for result in answer.results:
        for output in result.get_response().outputs:
            # It reads the counts as the first number behind a pointer.
            assert not output.name.startswith("num_") or output.datatype == "UINT32"
        usage["prompt_tokens"] = result.as_numpy("num_input_tokens").reshape(-1)[0]
        usage["completion_tokens"] += result.as_numpy("num_output_tokens").reshape(-1)[0]
    return {"text": answer.text, "num_responses": len(answer.results), **usage, "answer": answer}


SAMPLING = {"temperature": 0.0, "top_p": 1.0, "n": 1, "max_tokens": 24, "ignore_eos": True}


def test_frontend_gets_one_response_with_usage(flat: Server) -> None:
    got = ask(flat, SAMPLING)
    assert got["num_responses"] == 1
    assert got["completion_tokens"] == 24 and got["prompt_tokens"] > 1
    assert not got["text"].startswith(PROMPT)


def test_frontend_gets_the_prompt_for_echo(flat: Server) -> None:
    echoed = ask(flat, SAMPLING, exclude_input_in_output=False)
    assert echoed["text"] == PROMPT + ask(flat, SAMPLING)["text"]


def test_frontend_sums_the_usage_of_a_stream(flat: Server) -> None:
    streamed, whole = ask(flat, SAMPLING, stream=True), ask(flat, SAMPLING)
    assert streamed["num_responses"] > 1
    names = ("text", "prompt_tokens", "completion_tokens")
    assert [streamed[name] for name in names] == [whole[name] for name in names]


def test_frontend_gets_logprobs(flat: Server) -> None:
    got = ask(flat, {**SAMPLING, "logprobs": 2, "seed": 1}, return_logprobs=True)
    (text,) = got["answer"].values("logprobs")
    positions = json.loads(text)
    assert len(positions) == 24
    # The first entry is taken for the chosen token, all for the alternatives.
    chosen = [next(iter(position.values())) for position in positions]
    assert "".join(entry["decoded_token"] for entry in chosen) == got["text"]
    assert all(entry["logprob"] <= 0 for position in positions for entry in position.values())


def test_frontend_stops_at_its_stop_strings(flat: Server) -> None:
    text = ask(flat, SAMPLING)["text"]
    stop = text[12:15]
    got = ask(flat, {**SAMPLING, "stop": [stop, "never said"]})
    assert got["text"] == text[: text.index(stop)]
    assert 0 < got["completion_tokens"] < 24


# Sent with every request, since they have defaults there.
@pytest.mark.parametrize(
    "always",
    [
        {"ignore_eos": False, "n": 1, "temperature": 1.0, "top_p": 1.0},
        {"frequency_penalty": 0.0, "presence_penalty": 0.0},
    ],
)
def test_frontend_may_send_its_defaults(flat: Server, always: dict[str, Any]) -> None:
    assert ask(flat, {"max_tokens": 2, **always})["num_responses"] == 1
