"""vllm_backend's tensor contract over gRPC, as its users know it."""

import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpcaio

from octavo.cli.paths import default_model
from octavo.serving.tokenizer import Tokenizer
from tests.contract.calls import GREEDY, PROMPT, Answer, Server, collect_into

pytestmark = pytest.mark.e2e

RETURNS = ["finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens"]
RETURNS += ["num_output_tokens", "token_ids", "prompt_logprobs", "cached_tokens", "cost"]
ALL = {f"return_{name}": True for name in RETURNS}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(default_model())


def test_model_answers_with_a_prompt_alone(flat: Server) -> None:
    answer = flat.infer()
    assert len(answer.results) == 1
    assert answer.text.startswith(PROMPT)
    assert [output.name for output in answer.results[0].get_response().outputs] == ["text_output"]


def test_model_makes_16_tokens_by_default(flat: Server) -> None:
    answer = flat.infer(sampling=GREEDY, **ALL)
    assert answer.values("num_output_tokens") == [16]
    assert answer.values("finish_reason") == ["length"]


@pytest.mark.parametrize("exclude", [None, False, True])
def test_model_excludes_the_prompt_as_asked(flat: Server, exclude: bool | None) -> None:
    streamed = flat.infer(sampling=GREEDY, stream=True).text
    assert len(streamed) > 16
    text = flat.infer(sampling=GREEDY, exclude_input_in_output=exclude).text
    assert text == (streamed if exclude else PROMPT + streamed)


def test_model_refuses_to_stream_the_prompt(flat: Server) -> None:
    error = flat.infer(stream=True, exclude_input_in_output=False).error
    expected = "When streaming, `exclude_input_in_output` = False is not allowed."
    assert error == f"Error generating stream: {expected}"


@pytest.mark.parametrize("stream", [False, True])
def test_model_sends_outputs_of_the_declared_types_and_shapes(server: Server, stream: bool) -> None:
    answer = server.infer(sampling={**GREEDY, "logprobs": 1}, stream=stream, **ALL)
    assert not answer.errors
    first = (1,) if server.batched else ()
    for result in answer.results:
        tensors = {output.name: output.datatype for output in result.get_response().outputs}
        assert tensors == {
            "text_output": "BYTES",
            "finish_reason": "BYTES",
            "cumulative_logprob": "FP32",
            "logprobs": "BYTES",
            "num_input_tokens": "UINT32",
            "num_output_tokens": "UINT32",
            "token_ids": "INT32",
            "prompt_logprobs": "BYTES",
            "cached_tokens": "UINT32",
            "cost": "BYTES",
        }
        for name in tensors:
            size = int(result.as_numpy("num_output_tokens").item()) if name == "token_ids" else 1
            assert result.as_numpy(name).shape == (*first, size)


def test_model_streams_the_answer_in_pieces(flat: Server, tokenizer: Tokenizer) -> None:
    sampling = {**GREEDY, "max_tokens": 64, "logprobs": 0}
    whole = flat.infer(sampling=sampling, exclude_input_in_output=True, **ALL)
    parts = flat.infer(sampling=sampling, stream=True, **ALL)
    assert len(whole.results) == 1 and len(parts.results) > 4
    assert parts.text == whole.text == tokenizer.decode(whole.values("token_ids"))
    assert parts.values("token_ids") == whole.values("token_ids")
    assert sum(parts.values("num_output_tokens")) == 64
    assert set(parts.values("num_input_tokens")) == {len(tokenizer.encode(PROMPT))}
    assert parts.values("finish_reason") == ["None"] * (len(parts.results) - 1) + ["length"]
    assert parts.values("cumulative_logprob")[-1] == whole.values("cumulative_logprob")[0]


@pytest.mark.asyncio
async def test_model_answers_several_prompts_on_one_asyncio_stream(flat: Server) -> None:
    prompts = [PROMPT, "The function returns"]
    expected = {
        str(i): flat.infer(p, sampling=GREEDY, stream=True).text for i, p in enumerate(prompts)
    }

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for i, prompt in enumerate(prompts):
            inputs = flat.inputs(
                text_input=prompt, stream=True, sampling_parameters=json.dumps(GREEDY)
            )
            yield {"model_name": "llm", "inputs": inputs, "request_id": str(i)}

    got = dict.fromkeys(expected, "")
    async with grpcaio.InferenceServerClient(flat.settings.grpc_url) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            text = result.as_numpy("text_output")
            assert text is not None and len(text) == 1
            got[result.get_response().id] += text[0].decode()
    assert got == expected


def test_model_sends_a_lone_stream_token_by_token(flat: Server, tokenizer: Tokenizer) -> None:
    answer = flat.infer(sampling=GREEDY, stream=True, return_token_ids=True)
    ids = answer.values("token_ids")
    assert len(answer.results) == len(ids) == 16
    # Each response has its token's text and nothing else, as long as tokens are whole characters.
    assert answer.values("text_output") == [tokenizer.decode_single(i) for i in ids]


def test_model_takes_numbers_as_text(flat: Server) -> None:
    plain = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 24}
    as_text = {name: str(value) for name, value in plain.items()}
    expected = flat.infer(sampling={**plain, "ignore_eos": True}, **ALL)
    assert flat.infer(sampling={**as_text, "ignore_eos": "true"}, **ALL).text == expected.text
    assert expected.values("num_output_tokens") == [24]


def test_model_takes_request_parameters_when_the_json_is_absent(flat: Server) -> None:
    parameters = {"temperature": "0.8", "seed": 7, "max_tokens": 24, "ignore_eos": True}
    by_parameters = flat.infer(parameters=parameters, **ALL)
    by_json = flat.infer(sampling=parameters, parameters={"max_tokens": 2}, **ALL)
    assert by_parameters.text == by_json.text
    assert by_json.values("num_output_tokens") == [24]


def test_model_answers_null_logprobs_unless_sampling_asks_for_them(flat: Server) -> None:
    assert flat.infer(sampling=GREEDY, return_logprobs=True).values("logprobs") == ["null"]
    (text,) = flat.infer(sampling={**GREEDY, "logprobs": 0}, return_logprobs=True).values(
        "logprobs"
    )
    assert len(json.loads(text)) == 16


def test_model_sends_requested_outputs_only(flat: Server) -> None:
    answer = flat.infer(sampling=GREEDY, outputs=["text_output", "finish_reason"], **ALL)
    for result in answer.results:
        names = {output.name for output in result.get_response().outputs}
        assert names == {"text_output", "finish_reason"}


def test_model_answers_messages(server: Server, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Say é."}]
    answer = server.infer(None, messages=json.dumps(messages), sampling=GREEDY, **ALL)
    prompt = tokenizer.render_chat(messages)
    assert answer.text.startswith(prompt)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert answer.values("num_input_tokens") == [len(ids)]


def test_model_answers_token_ids_as_their_text(server: Server, tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode(PROMPT), dtype=np.int32)
    ids = ids[None] if server.batched else ids
    assert server.infer(None, input_ids=ids, sampling=GREEDY).text == (
        server.infer(sampling=GREEDY).text
    )


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"sampling": {"beam_width": 2}}, "beam_width: got 2; unknown parameter; known: "),
    "malformed": ({"sampling": "{"}, "sampling_parameters: got {; JSON is expected"),
    "type": ({"sampling": {"top_k": "many"}}, "top_k: got many; should be a valid integer"),
    "range": ({"sampling": {"top_p": "1.5"}}, "top_p: got 1.5; should be less than or equal to 1"),
    "parameter": ({"parameters": {"temperature": -1}}, "temperature: got -1; should be greater"),
    "context": ({"sampling": {"max_tokens": "9999"}}, "max_tokens: got 9999; at most "),
    "empty": ({"text": ""}, "text_input: got an empty text; at least 1 character is needed"),
    "encoding": (
        {"text": b"\xff"},
        "text_input: got byte 0xff at offset 0; UTF-8 text is expected",
    ),
    "none": ({"text": None, "stream": False}, "prompt: got none; exactly one of text_input, "),
}


@pytest.mark.parametrize("name", ERRORS)
def test_model_refuses(server: Server, name: str) -> None:
    values, message = ERRORS[name]
    assert server.infer(**values).error.startswith(message)
    assert server.infer(sampling={**GREEDY, "max_tokens": 1}).text.startswith(PROMPT)


def test_model_refuses_a_batch_of_prompts(batched: Server) -> None:
    prompts = np.array([[b"one"], [b"two"]], dtype=object)
    error = batched.infer(prompts).error
    assert error == "text_input: got shape [2, 1]; one element per request is expected"


@pytest.mark.parametrize("stream", [False, True])
def test_model_ends_a_cancelled_request_with_one_error(flat: Server, stream: bool) -> None:
    before = ended(flat)
    answer, first = Answer([], []), threading.Event()
    with flat.client() as client:
        client.start_stream(callback=collect_into(answer, first))
        sampling = {**GREEDY, "max_tokens": "1500"}
        flat.send(client, sampling=json.dumps(sampling), stream=stream)
        first.wait(30 if stream else 0.1)
        client.stop_stream(cancel_requests=True)
    (error,) = answer.errors
    assert error.status() == "StatusCode.CANCELLED"
    assert (len(answer.results) > 0) == stream
    # The server's metrics are up to a second old.
    deadline_s = time.monotonic() + 10
    while (ended(flat), flat.metric("octavo_num_requests_running")) != (before + 1, 0):
        assert time.monotonic() < deadline_s, "the engine goes on"
        time.sleep(0.1)


def ended(server: Server) -> float:
    return server.metric("octavo_requests_total", finish_reason="cancelled")
