"""Several answers to one prompt: n > 1."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from octavo_client import AsyncClient, Choice, Chunk, Client, Logprob, ServerError, Usage
from tests.client.scripted_server import Received, ScriptedServer


def position(token_id: int) -> dict[str, Any]:
    return {str(token_id): {"logprob": -0.5, "rank": 1, "decoded_token": "t"}}


def two_choices(call: Received) -> Iterator[Any]:
    """The second ends first, and goes on saying so; the two never have as many tokens."""
    assert call.sampling["n"] == 2
    yield call.reply(
        ["a", "x"], ["None", "None"], tokens=[2, 1], token_ids=[1, 2, 9], cumulative=[-1.0, -0.5],
        logprobs=[[position(1), position(2)], [position(9)]],
        prompt_logprobs=[None, position(4), position(5)],
    )  # fmt: skip
    yield call.reply(
        ["", "y"], ["None", "stop"], tokens=[0, 1], token_ids=[8], cumulative=[-1.0, -1.0],
        logprobs=[[], [position(8)]],
    )  # fmt: skip
    yield call.reply(
        ["b", ""], ["length", "stop"], tokens=[1, 0], token_ids=[3], cumulative=[-1.5, -1.0],
        logprobs=[[position(3)], []],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _script(server: ScriptedServer) -> None:
    server.script = two_choices


def test_stream_says_which_choice_a_chunk_belongs_to(client: Client) -> None:
    chunks = list(client.stream("Go on", n=2))

    assert chunks == [
        Chunk("a"),
        Chunk("x", index=1),
        Chunk("y", index=1, finish_reason="stop"),
        Chunk("b", finish_reason="length", usage=Usage(3, 5)),
    ]


def test_whole_answers_are_choices(client: Client) -> None:
    whole = client.generate("Go on", n=2, logprobs=1, prompt_logprobs=1, return_token_ids=True)

    def logprobs(*ids: int) -> Any:
        return tuple({i: Logprob(-0.5, 1, "t")} for i in ids)

    assert whole.choices == (
        Choice("ab", "length", (1, 2, 3), logprobs(1, 2, 3), -1.5),
        Choice("xy", "stop", (9, 8), logprobs(9, 8), -1.0),
    )
    assert whole.usage == Usage(3, 5)
    assert whole.prompt_logprobs == (None, *logprobs(4, 5))
    first = whole.choices[0]
    assert whole.text == first.text and whole.finish_reason == first.finish_reason
    assert whole.token_ids == first.token_ids and whole.logprobs == first.logprobs
    assert whole.cumulative_logprob == first.cumulative_logprob


def test_async_client_gives_the_same(client: Client, server: ScriptedServer) -> None:
    async def ask() -> Any:
        async with AsyncClient(server.url) as aclient:
            streamed = [chunk async for chunk in aclient.stream("Go on", n=2)]
            return streamed, await aclient.generate("Go on", n=2, return_token_ids=True)

    assert asyncio.run(ask()) == (
        list(client.stream("Go on", n=2)), client.generate("Go on", n=2, return_token_ids=True)
    )  # fmt: skip


def test_answer_is_not_whole_before_all_choices_have_ended(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply(["a", "b"], ["stop", "None"], tokens=[1, 1])
        yield call.flag_only()

    server.script = script
    stream = client.stream("Go on", n=2)

    assert [next(stream).usage, next(stream).usage] == [None, None]
    with pytest.raises(ServerError, match="incomplete"):
        next(stream)


def test_prompt_logprobs_come_even_if_the_first_choice_has_no_token_yet(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply(["", "x"], ["None", "stop"], tokens=[0, 1], prompt_logprobs=[None])
        yield call.reply(["a", ""], ["stop", "stop"], tokens=[1, 0])

    server.script = script

    first, *_ = client.stream("Go on", n=2, prompt_logprobs=0)

    assert first.prompt_logprobs == (None,)


@pytest.mark.parametrize(
    "wrong",
    [{"finish_reason": ["stop"]}, {"tokens": [1, 1, 1]}, {"token_ids": [1, 2, 3]}],
    ids=["reasons", "counts", "ids"],
)
def test_outputs_that_do_not_match_are_an_error_of_the_server(
    client: Client, server: ScriptedServer, wrong: dict[str, Any]
) -> None:
    def script(call: Received) -> Iterator[Any]:
        right = {"finish_reason": ["stop", "stop"], "tokens": [1, 1], "token_ids": [1, 2]}
        yield call.reply(["a", "b"], **{**right, **wrong})

    server.script = script

    with pytest.raises(ServerError, match="cannot read the server's response"):
        client.generate("Go on", n=2, return_token_ids=True)
