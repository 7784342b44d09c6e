"""From the server's responses to chunks and completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from octavo_client import Choice, Chunk, Client, Completion, Logprob, ServerError, Usage
from tests.client.scripted_server import RECEIPT, Received, ScriptedServer


def test_stream_yields_chunks_and_the_last_has_finish_reason_and_usage(client: Client) -> None:
    chunks = list(client.stream("Say hello"))

    assert chunks == [
        Chunk("Hello"),
        Chunk(", wor"),
        Chunk("ld", finish_reason="stop", usage=Usage(3, 3)),
    ]
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 6


def test_generate_returns_the_whole_answer(client: Client, server: ScriptedServer) -> None:
    whole = client.generate("Say hello")

    assert whole == Completion((Choice("Hello, world", "stop"),), Usage(3, 3))
    assert (whole.text, whole.finish_reason) == ("Hello, world", "stop")
    assert server.last.inputs["stream"] is False


def test_stream_ends_by_a_final_response_that_is_only_a_flag(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hello")
        yield call.reply("!", "length", final=False)
        yield call.flag_only()

    server.script = script

    texts = [(chunk.text, chunk.finish_reason) for chunk in client.stream("Say hello")]

    assert texts == [("Hello", None), ("!", "length")]


def test_chunk_without_text_is_kept_for_its_tokens(client: Client, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("", tokens=1)
        yield call.reply("é", "stop", tokens=1)

    server.script = script

    chunks = list(client.stream("An accent"))

    assert [chunk.text for chunk in chunks] == ["", "é"]
    assert chunks[-1].usage == Usage(3, 2)


def test_last_chunk_may_have_neither_text_nor_tokens(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("all", tokens=2)
        yield call.reply("", "stop", tokens=0)

    server.script = script

    assert client.generate("Say all") == Completion((Choice("all", "stop"),), Usage(3, 2))


def test_token_ids_and_logprobs_come_when_asked_for(client: Client, server: ScriptedServer) -> None:
    def position(token_id: int, text: str) -> dict[str, Any]:
        own = {"logprob": -0.5, "rank": 1, "decoded_token": text}
        return {str(token_id): own, "9": {"logprob": -2.0, "rank": 2, "decoded_token": "x"}}

    def script(call: Received) -> Iterator[Any]:
        yield call.reply("a", token_ids=[7], logprobs=[position(7, "a")], cumulative=-0.5)
        yield call.reply(
            "bc", "stop", tokens=2, token_ids=[8, 5],
            logprobs=[position(8, "b"), position(5, "c")], cumulative=-1.5,
        )  # fmt: skip

    server.script = script

    answer = client.generate("Say abc", logprobs=1, return_token_ids=True)

    assert answer.token_ids == (7, 8, 5)
    assert answer.cumulative_logprob == -1.5
    assert answer.logprobs is not None and len(answer.logprobs) == 3
    assert answer.logprobs[1] == {8: Logprob(-0.5, 1, "b"), 9: Logprob(-2.0, 2, "x")}


def test_outputs_that_were_not_asked_for_are_none(client: Client) -> None:
    answer = client.generate("Say hello")

    assert (answer.token_ids, answer.logprobs, answer.cumulative_logprob) == (None, None, None)


def test_answer_that_ends_without_a_finish_reason_is_an_error(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")

    server.script = script
    stream = client.stream("Say hello")

    assert next(stream).text == "Hel"
    with pytest.raises(ServerError, match="incomplete"):
        next(stream)


def test_prompt_logprobs_come_with_the_first_chunk(client: Client, server: ScriptedServer) -> None:
    second = {"7": {"logprob": -0.5, "rank": 2, "decoded_token": "b"}}

    def script(call: Received) -> Iterator[Any]:
        yield call.reply("", tokens=0, prompt_logprobs=[None, second])
        yield call.reply("c", "stop", prompt_logprobs=None)

    server.script = script
    expected = (None, {7: Logprob(-0.5, 2, "b")})

    first, last = client.stream("ab", prompt_logprobs=0)
    assert (first.prompt_logprobs, last.prompt_logprobs) == (expected, None)
    whole = client.generate("ab", prompt_logprobs=0)
    assert whole.prompt_logprobs == expected and whole.logprobs is None


def test_the_receipt_comes_when_asked_for(client: Client, server: ScriptedServer) -> None:
    assert client.generate("Say hello").cost is None
    assert "return_cost" not in server.last.inputs

    *early, last = client.stream("Say hello", return_cost=True)
    assert all(chunk.cost is None for chunk in early) and last.usage is not None
    cost = client.generate("Say hello", return_cost=True).cost
    assert cost is not None and cost == last.cost
    assert asdict(cost) == {k: v for k, v in RECEIPT.items() if k != "of_newer_servers"}


def test_a_receipt_that_cannot_be_read_is_the_servers_fault(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hello", "stop", cost={"usd": 1})

    server.script = script
    with pytest.raises(ServerError, match="cannot read the server's response: 'prefill_usd'"):
        client.generate("Say hello", return_cost=True)


def test_cached_tokens_are_counted_where_the_model_tells(
    client: Client, server: ScriptedServer
) -> None:
    server.counts_cached_tokens = True

    assert client.generate("Say hello").usage == Usage(3, 3, cached_tokens=2)
    assert server.last.inputs["return_cached_tokens"] is True
