"""infer() of tritonclient over HTTP and gRPC, on the unary model beside the streaming one."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.contract.calls import GREEDY, PROMPT, Answer, Server, collect_into

pytestmark = pytest.mark.e2e

UNARY = "llm_unary"
RETURNS = ("finish_reason", "num_input_tokens", "num_output_tokens", "token_ids")


def tensors(server: Server, kind: Any, inputs: dict[str, Any]) -> list[Any]:
    made = []
    for name, value in inputs.items():
        array = server.shaped([value])
        made.append(kind(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def infer(server: Server, protocol: str, sampling: dict[str, Any], **more: Any) -> Any:
    """One blocking call on a client of its own."""
    options = {name: more.pop(name) for name in ("client_timeout", "priority") if name in more}
    inputs = {"text_input": PROMPT, "sampling_parameters": json.dumps(sampling)}
    inputs |= {f"return_{name}": True for name in RETURNS} | more
    if protocol == "grpc":
        with grpcclient.InferenceServerClient(server.settings.grpc_url) as client:
            made = tensors(server, grpcclient.InferInput, inputs)
            return client.infer(UNARY, made, **options)
    url = server.settings.http_url.removeprefix("http://")
    with httpclient.InferenceServerClient(url) as client:
        return client.infer(UNARY, tensors(server, httpclient.InferInput, inputs), **options)


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_unary_answers_what_a_stream_answers(server: Server, protocol: str) -> None:
    sampling = {**GREEDY, "max_tokens": 24}
    flags = {f"return_{name}": True for name in RETURNS}
    streamed = server.infer(sampling=sampling, stream=True, **flags)
    result = infer(server, protocol, sampling)
    assert result.as_numpy("text_output").reshape(-1)[0].decode() == PROMPT + streamed.text
    assert result.as_numpy("token_ids").reshape(-1).tolist() == streamed.values("token_ids")
    assert result.as_numpy("finish_reason").reshape(-1)[0] == b"length"
    assert result.as_numpy("num_output_tokens").reshape(-1).tolist() == [24]
    first = (1,) if server.batched else ()
    assert result.as_numpy("token_ids").shape == (*first, 24)


def test_unary_gives_a_receipt(server: Server, protocol: str) -> None:
    result = infer(server, protocol, {**GREEDY, "max_tokens": 24}, return_cost=True)
    assert result.as_numpy("cost").shape == ((1, 1) if server.batched else (1,))
    receipt = json.loads(result.as_numpy("cost").item())
    assert receipt["prefill_s"] > 0 and receipt["decode_s"] > 0
    assert receipt["usd"] is None, "these servers have no price"


def test_unary_answers_n_choices(server: Server, protocol: str) -> None:
    result = infer(server, protocol, {"temperature": 1, "seed": 3, "max_tokens": 8, "n": 3})
    texts = result.as_numpy("text_output").reshape(-1).tolist()
    assert len(set(texts)) == 3 and all(text.startswith(PROMPT.encode()) for text in texts)
    assert result.as_numpy("token_ids").size == result.as_numpy("num_output_tokens").sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"top_p": 7}}, "top_p: got 7; should be less than or equal to 1"),
        ({"stream": True}, "stream: got true; only false is allowed here"),
        ({"text_input": ""}, "text_input: got an empty text"),
    ],
)
def test_unary_refuses(server: Server, protocol: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(server, protocol, **{"sampling": GREEDY, **change})
    assert message in str(caught.value.message())
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert infer(server, protocol, {**GREEDY, "max_tokens": 1}).as_numpy("text_output").size == 1


def test_unary_is_served_by_generate_too(server: Server) -> None:
    body = {"text_input": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answers = [server.post("generate", body, model=model).json() for model in ("llm", UNARY)]
    assert answers[0]["text_output"] == answers[1]["text_output"]
    assert answers[1]["model_name"] == UNARY


def test_many_unary_threads_run_side_by_side_with_streams(server: Server) -> None:
    """32 callers: the engine must have had several of them in one step (8 places here), and a
    stream that begins among them must go on between their answers."""
    sampling = {**GREEDY, "max_tokens": 32}
    expected = infer(server, "grpc", sampling).as_numpy("text_output").reshape(-1)[0]
    steps, tokens = (
        server.settled_metric(name)
        for name in ("octavo_steps_total", "octavo_generation_tokens_total")
    )
    streamed = Answer([], [])
    with server.client() as client, ThreadPoolExecutor(32) as pool:
        calls = [
            pool.submit(infer, server, "http" if i % 2 else "grpc", sampling) for i in range(32)
        ]
        client.start_stream(callback=collect_into(streamed))
        server.send(client, sampling={**GREEDY, "max_tokens": 64}, stream=True)
        texts = {call.result(60).as_numpy("text_output").reshape(-1)[0] for call in calls}
        client.stop_stream()
    assert texts == {expected}
    assert not streamed.errors and len(streamed.results) > 4
    made = server.settled_metric("octavo_generation_tokens_total") - tokens
    assert made == 32 * 32 + 64
    # One after another would take a step for each token.
    assert server.settled_metric("octavo_steps_total") - steps < made / 1.5


def test_unary_call_that_is_given_up_gives_its_place_back(server: Server) -> None:
    before = server.settled_metric("octavo_requests_total", finish_reason="cancelled")
    with pytest.raises(InferenceServerException):
        infer(server, "grpc", {**GREEDY, "max_tokens": 1500}, client_timeout=0.3)
    deadline_s = time.monotonic() + 10
    while server.metric("octavo_requests_total", finish_reason="cancelled") != before + 1:
        assert time.monotonic() < deadline_s, "the engine goes on"
        time.sleep(0.1)
    assert server.settled_metric("octavo_kv_blocks_used") == 0


def test_unary_calls_given_up_at_any_moment_cost_nobody_else(server: Server) -> None:
    """Cancellations that meet the answer on its way, many times over."""
    stop = threading.Event()
    expected = infer(server, "grpc", {**GREEDY, "max_tokens": 8}).as_numpy("token_ids").tolist()

    def give_up(seed: int) -> None:
        random = np.random.default_rng(seed)
        while not stop.is_set():
            try:
                timeout_s = float(random.uniform(0.01, 0.25))
                infer(server, "grpc", {**GREEDY, "max_tokens": 16}, client_timeout=timeout_s)
            except InferenceServerException as exc:
                assert "Deadline Exceeded" in str(exc) or "cancel" in str(exc).lower(), exc

    with ThreadPoolExecutor(4) as pool:
        leaving = [pool.submit(give_up, seed) for seed in range(4)]
        for _ in range(15):
            result = infer(server, "http", {**GREEDY, "max_tokens": 8})
            assert result.as_numpy("token_ids").tolist() == expected
        stop.set()
        for each in leaving:
            each.result(30)
