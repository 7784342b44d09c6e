"""`timeout` limits the server and, a little later, the client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from octavo_client import Client, RequestTimeoutError
from octavo_client._transport import DEADLINE_GRACE_S
from tests.client.scripted_server import Received, ScriptedServer


def stay_silent(call: Received) -> Iterator[Any]:
    call.wait_for_end()
    yield call.flag_only()


def test_timeout_is_sent_as_deadline(client: Client, server: ScriptedServer) -> None:
    client.generate("Say hello", timeout=30)

    assert 29_000 < server.last.sampling["deadline_ms"] <= 30_000


def test_deadline_of_the_server_may_differ(client: Client, server: ScriptedServer) -> None:
    client.generate("Say hello", timeout=30, deadline_ms=500)

    assert server.last.sampling["deadline_ms"] == 500


def test_timeout_of_the_client_holds_unless_a_call_gives_its_own(server: ScriptedServer) -> None:
    with Client(server.url, timeout=30) as client:
        client.generate("Say hello")
        client.generate("Say hello", timeout=60)
        client.generate("Say hello", timeout=None)

    first, second, third = (call.sampling for call in server.received)
    assert 29_000 < first["deadline_ms"] <= 30_000
    assert 59_000 < second["deadline_ms"] <= 60_000
    assert "deadline_ms" not in third


def test_client_stops_waiting_for_a_silent_server(client: Client, server: ScriptedServer) -> None:
    client.generate("Connect")
    server.script = stay_silent
    started = time.monotonic()

    with pytest.raises(RequestTimeoutError, match=r"no whole answer within 0\.\d+ s"):
        client.generate("Say hello", timeout=0.1)

    assert 0.1 + DEADLINE_GRACE_S <= time.monotonic() - started < 5
    assert server.last.ended.wait(5) and not server.last.completed


def test_timeout_holds_for_the_whole_answer(client: Client, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        while not call.ended.wait(0.02):
            yield call.reply("a")

    client.generate("Connect")
    server.script = script
    texts = []

    with pytest.raises(RequestTimeoutError):
        for chunk in client.stream("Go on", timeout=0.3):
            texts.append(chunk.text)

    assert len(texts) > 1


def test_timeout_is_not_counted_anew_from_each_chunk(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("a")
        assert not call.ended.wait(0.8)
        yield call.reply("b")
        call.wait_for_end()

    client.generate("Connect")
    server.script = script
    started = time.monotonic()

    with pytest.raises(RequestTimeoutError, match="no whole answer within"):
        list(client.stream("Go on", timeout=1))

    assert 1 + DEADLINE_GRACE_S <= time.monotonic() - started < 1.9
    assert server.last.ended.wait(5) and not server.last.completed


def test_servers_own_word_about_the_deadline_is_waited_for(
    client: Client, server: ScriptedServer, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"octavo_client._{protocol}.DEADLINE_GRACE_S", 10.0)

    def script(call: Received) -> Iterator[Any]:
        call.ended.wait(call.sampling["deadline_ms"] / 1000)
        yield call.error(f"Request timeout expired: deadline_ms = {call.sampling['deadline_ms']}")

    server.script = script

    with pytest.raises(RequestTimeoutError, match="deadline_ms"):
        client.generate("Say hello", timeout=0.05)
