"""Every failure of the server becomes its exception."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import octavo_client
from octavo_client import (
    Client,
    InvalidRequestError,
    OctavoError,
    RejectedError,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    UnavailableError,
    UnknownModelError,
)
from tests.client.scripted_server import Received, ScriptedServer

# What Triton's front end says, without a final flag.
FRONT_END = [
    ("Exceeds maximum queue size", RejectedError),
    ("Request for unknown model: 'llm' is not found", UnknownModelError),
    ("Request for unknown model: 'llm' has no available versions", UnavailableError),
    ("unexpected inference input 'nope' for model 'llm'", InvalidRequestError),
    ("unexpected shape for input 'text_input' for model 'llm'. Expected [1]", InvalidRequestError),
    ("expected 1 inputs but got 2 inputs for model 'llm'", InvalidRequestError),
    ("inference input 'stream' data-type is 'INT32', expected 'BOOL'", InvalidRequestError),
    ("GRPC server is shutting down and has stopped accepting new requests.", UnavailableError),
]
# What the queue, the Python backend and the model say, with the flag.
MODEL = [
    ("Request timeout expired", RequestTimeoutError),
    ("Request timeout expired: deadline_ms = 200", RequestTimeoutError),
    ("Request was cancelled", RequestCancelledError),
    ("Stub process 'llm_0_0' is not healthy.", UnavailableError),
    ("the engine has failed: RuntimeError: out of memory", UnavailableError),
    ("the server is shutting down", UnavailableError),
    ("top_p: got 7; must be at most 1", InvalidRequestError),
    ('messages[0]: got {}; an object with a text\n"role" is expected', InvalidRequestError),
    ("stop: got Exceeds maximum queue size; at most 3 texts", InvalidRequestError),
    ("ValueError: logits are not finite", ServerError),
    ("boom", ServerError),
]


@pytest.mark.parametrize(("text", "kind"), FRONT_END)
def test_front_end_errors(
    client: Client, server: ScriptedServer, text: str, kind: type[OctavoError]
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.front_end_error(text)

    server.script = script

    with pytest.raises(OctavoError) as caught:
        client.generate("Say hello")

    assert type(caught.value) is kind
    assert caught.value.message == text


@pytest.mark.parametrize(("text", "kind"), MODEL)
def test_model_errors(
    client: Client, server: ScriptedServer, text: str, kind: type[OctavoError]
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.error(text)

    server.script = script

    with pytest.raises(OctavoError) as caught:
        client.generate("Say hello")

    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_error_in_the_middle_comes_after_the_chunks(client: Client, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")
        yield call.error("the engine has failed: out of memory")

    server.script = script
    stream = client.stream("Say hello")

    assert next(stream).text == "Hel"
    with pytest.raises(UnavailableError, match="out of memory"):
        next(stream)
    assert list(stream) == []
    assert server.last.ended.wait(5) and server.last.completed, "an ended call was cancelled"


def test_unknown_model(server: ScriptedServer) -> None:
    with Client(server.url, model="nope") as client, pytest.raises(UnknownModelError) as caught:
        client.generate("Say hello")

    assert caught.value.status == "NOT_FOUND"


def test_no_server(dead_url: str) -> None:
    with Client(dead_url) as client, pytest.raises(UnavailableError, match="connect"):
        client.generate("Say hello")


def test_server_that_dies_in_the_middle(client: Client, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")
        call.wait_for_end()

    server.script = script
    stream = client.stream("Say hello")
    next(stream)

    server.stop()

    with pytest.raises((UnavailableError, RequestCancelledError)):
        next(stream)


def test_closing_the_client_ends_its_streams(client: Client, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")
        call.wait_for_end()

    server.script = script
    stream = client.stream("Say hello")
    next(stream)
    closing = threading.Timer(0.05, client.close)
    closing.start()

    with pytest.raises(RequestCancelledError):
        next(stream)
    closing.join()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("Say hello")


def test_closing_the_client_ends_a_request_without_an_answer(
    client: Client, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        call.wait_for_end()
        yield call.flag_only()

    def close_once_it_has_arrived() -> None:
        server.arrived.acquire()
        client.close()

    server.script = script
    closing = threading.Thread(target=close_once_it_has_arrived)
    closing.start()
    started = time.monotonic()

    with pytest.raises(RequestCancelledError):
        client.generate("Say hello")
    assert time.monotonic() - started < 5, "only the server's patience has ended it"
    closing.join()
    assert server.last.ended.wait(5) and not server.last.completed


def test_all_errors_are_of_one_family() -> None:
    errors = {name: getattr(octavo_client, name) for name in octavo_client.__all__}
    named = [error for name, error in errors.items() if name.endswith("Error")]

    assert len(named) == 8
    assert all(issubclass(error, OctavoError) for error in named)
