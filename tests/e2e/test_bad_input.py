"""A bad request is refused by name, value and limit, and costs its neighbours nothing."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.e2e.bad_requests import BAD_REQUESTS, BadRequest
from tests.e2e.streams import Stream, infer_request
from tests.e2e.target import Target, prompt_ids


def send(target: Target, bad: BadRequest) -> Stream:
    request = infer_request(bad.tensors, batched=target.batched)
    return Stream(target.settings.grpc_url, request)


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=[bad.name for bad in BAD_REQUESTS])
def test_bad_request_is_refused_over_grpc(target: Target, bad: BadRequest) -> None:
    answer = send(target, bad).wait()
    assert (answer.error or "").startswith(bad.error) and not answer.chunks
    assert bad.limit in (answer.error or "")[len(bad.error) :]


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=[bad.name for bad in BAD_REQUESTS])
def test_bad_request_is_refused_over_http(target: Target, bad: BadRequest) -> None:
    response = target.post("generate_stream", bad.body)
    assert response.status_code == 400
    error = json.loads(response.text.removeprefix("data: "))["error"]
    assert error.startswith(bad.error)
    assert bad.limit in error[len(bad.error) :]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"text_input": ""}, "text_input: got an empty text"),
        ({"text_input": "a", "temperature": -1}, "temperature: got -1"),
        ({"text_input": "a", "parameters": {"max_tokens": "many"}}, "max_tokens: got many"),
        ({"text_input": "a", "foo": 3}, "foo: got 3; unknown parameter"),
        ({"text_input": "a", "max_tokens": 2048}, "max_tokens: got 2048; at most"),
    ],
)
def test_bad_request_is_refused_by_unary_http(
    target: Target, body: dict[str, Any], error: str
) -> None:
    response = target.post("generate", body)
    assert response.status_code == 400
    assert error in response.json()["error"]


def test_two_prompts_in_one_request_are_refused(target: Target) -> None:
    names = ("text_input", "stream", "sampling_parameters", "return_finish_reason",
             "return_token_ids", "return_num_output_tokens")  # fmt: skip
    answer = target.send("a", shapes={key: [2, 1] for key in names}).wait()
    assert "[2, 1]" in (answer.error or "") or "[2,1]" in (answer.error or "")
    assert not answer.chunks


def test_neighbours_keep_their_tokens_under_a_burst_of_bad_requests(target: Target) -> None:
    prompts = [prompt_ids(20 + 50 * i, seed=i) for i in range(4)]
    alone = [target.generate(prompt, max_tokens=800).token_ids for prompt in prompts]
    assert len({tuple(tokens) for tokens in alone}) == 4
    good_prompt, good = prompt_ids(30, seed=9), target.generate(prompt_ids(30, seed=9)).token_ids
    neighbours = [target.send(prompt, max_tokens=800) for prompt in prompts]
    for stream in neighbours:
        stream.wait_for_first()
    num_refused = 0
    bad_requests = itertools.cycle(BAD_REQUESTS)
    while not any(stream.is_done for stream in neighbours):
        mixed = [(bad, send(target, bad)) for bad in itertools.islice(bad_requests, 6)]
        served = target.send(good_prompt)
        for bad, stream in mixed:
            assert (stream.wait().error or "").startswith(bad.error)
            num_refused += 1
        assert served.result().token_ids == good
    assert num_refused >= 6
    assert [stream.result().token_ids for stream in neighbours] == alone
    assert target.server.failure() is None
