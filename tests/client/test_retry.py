"""Retries are opt-in, before the first token only, with full jitter, within the timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from octavo_client import (
    Client,
    InvalidRequestError,
    RejectedError,
    RequestTimeoutError,
    Retry,
    UnavailableError,
)
from tests.client.scripted_server import Received, ScriptedServer, say_hello

FULL = "Exceeds maximum queue size"


class Recorder:
    """Keeps the pauses instead of taking them; `jitter` is what it draws."""

    def __init__(self, jitter: float = 1.0) -> None:
        self.pauses: list[float] = []
        self.retry = Retry(
            attempts=4, backoff_s=0.5, max_backoff_s=1.5,
            random=lambda: jitter, sleep=self.pauses.append,
        )  # fmt: skip


def reject_first(count: int, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        if len(server.received) <= count:
            yield call.front_end_error(FULL)
        else:
            yield from say_hello(call)

    server.script = script


def test_nothing_is_retried_unless_asked_for(client: Client, server: ScriptedServer) -> None:
    reject_first(1, server)

    with pytest.raises(RejectedError):
        client.generate("Say hello")

    assert len(server.received) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["generate", "stream"])
def test_rejected_request_is_sent_again(server: ScriptedServer, stream: bool) -> None:
    reject_first(3, server)
    recorder = Recorder()

    with Client(server.url, retries=recorder.retry) as client:
        if stream:
            text = "".join(chunk.text for chunk in client.stream("Say hello"))
        else:
            text = client.generate("Say hello").text

    assert text == "Hello, world"
    assert len(server.received) == 4
    assert recorder.pauses == [0.5, 1.0, 1.5]


def test_pause_is_drawn_from_zero_to_the_backoff(server: ScriptedServer) -> None:
    reject_first(2, server)
    recorder = Recorder(jitter=0.25)

    with Client(server.url, retries=recorder.retry) as client:
        client.generate("Say hello")

    assert recorder.pauses == [0.125, 0.25]


def test_last_attempt_raises(server: ScriptedServer) -> None:
    reject_first(100, server)
    recorder = Recorder()

    with Client(server.url, retries=recorder.retry) as client, pytest.raises(RejectedError):
        client.generate("Say hello")

    assert len(server.received) == 4
    assert len(recorder.pauses) == 3


def test_missing_server_is_tried_again(dead_url: str) -> None:
    recorder = Recorder()

    with Client(dead_url, retries=recorder.retry) as client, pytest.raises(UnavailableError):
        client.generate("Say hello")

    assert len(recorder.pauses) == 3


def test_nothing_is_retried_after_the_first_token(server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")
        yield call.error("the engine has failed: out of memory")

    server.script = script
    recorder = Recorder()

    with Client(server.url, retries=recorder.retry) as client:
        stream = client.stream("Say hello")
        assert next(stream).text == "Hel"
        with pytest.raises(UnavailableError):
            next(stream)

    assert len(server.received) == 1
    assert recorder.pauses == []


def test_invalid_request_is_not_retried(server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.error("top_p: got 7; must be at most 1")

    server.script = script
    recorder = Recorder()

    with Client(server.url, retries=recorder.retry) as client, pytest.raises(InvalidRequestError):
        client.generate("Say hello")

    assert len(server.received) == 1


def test_pause_beyond_the_timeout_is_not_taken(server: ScriptedServer) -> None:
    reject_first(100, server)
    recorder = Recorder()
    retry = replace(recorder.retry, backoff_s=100.0, max_backoff_s=100.0)

    with Client(server.url, retries=retry) as client, pytest.raises(RejectedError):
        client.generate("Say hello", timeout=60)

    assert recorder.pauses == []


def test_timeout_covers_all_attempts(server: ScriptedServer) -> None:
    reject_first(1, server)
    retry = replace(Recorder().retry, backoff_s=0.1, sleep=time.sleep)

    with Client(server.url, retries=retry) as client:
        client.generate("Say hello", timeout=10)

    first, second = (call.sampling["deadline_ms"] for call in server.received)
    assert 9_000 < second <= first - 100


def test_pause_that_takes_too_long_ends_in_a_timeout(server: ScriptedServer) -> None:
    reject_first(1, server)
    retry = replace(Recorder().retry, backoff_s=0.01, sleep=lambda _: time.sleep(1.1))

    with Client(server.url, retries=retry) as client, pytest.raises(RequestTimeoutError):
        client.generate("Say hello", timeout=1)

    assert len(server.received) == 1


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"backoff_s": -1.0}, {"max_backoff_s": -1.0}])
def test_retry_checks_its_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Retry(**wrong)
