"""Leaving a stream cancels the generation on the server; an answer that is whole is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from octavo_client import Client
from tests.client.scripted_server import Received, ScriptedServer


def talk_for_ever(call: Received) -> Iterator[Any]:
    yield call.reply("a")
    yield call.reply("b")
    call.wait_for_end()


@pytest.fixture(autouse=True)
def _talkative(server: ScriptedServer) -> None:
    server.script = talk_for_ever


def assert_cancelled(call: Received) -> None:
    assert call.ended.wait(5), "the server still generates"
    assert not call.completed


def test_break_out_of_the_loop_cancels(client: Client, server: ScriptedServer) -> None:
    for chunk in client.stream("Go on"):
        assert chunk.text == "a"
        break

    assert_cancelled(server.last)


def test_end_of_a_with_block_cancels(client: Client, server: ScriptedServer) -> None:
    with client.stream("Go on") as stream:
        assert next(stream).text == "a"
        assert not server.last.ended.is_set()

    assert_cancelled(server.last)
    assert list(stream) == []


def test_exception_in_a_with_block_cancels(client: Client, server: ScriptedServer) -> None:
    with pytest.raises(KeyError), client.stream("Go on") as stream:
        for chunk in stream:
            raise KeyError(chunk.text)

    assert_cancelled(server.last)


def test_close_cancels_and_may_be_called_twice(client: Client, server: ScriptedServer) -> None:
    stream = client.stream("Go on")
    next(stream)

    stream.close()
    stream.close()

    assert_cancelled(server.last)


def test_stream_that_was_never_read_sends_nothing(client: Client, server: ScriptedServer) -> None:
    client.stream("Go on").close()

    assert server.received == []


def test_one_stream_is_cancelled_and_its_neighbour_goes_on(
    client: Client, server: ScriptedServer
) -> None:
    left, kept = client.stream("Go on"), client.stream("Go on")
    next(left)
    next(kept)
    left_call, kept_call = server.received

    left.close()

    assert_cancelled(left_call)
    assert next(kept).text == "b"
    assert not kept_call.ended.is_set()
    kept.close()


def test_leaving_at_the_last_chunk_does_not_cancel(client: Client, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("a")
        yield call.reply("b", "stop")
        # What follows the final response must be awaited, or this would be interrupted.
        assert not call.ended.wait(0.05)

    server.script = script

    with client.stream("Be short") as stream:
        for chunk in stream:
            if chunk.finish_reason:
                break

    assert server.last.ended.wait(5)
    assert server.last.completed
