"""What only HTTP has: addresses, connections, proxies, TLS, statuses, the event stream."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo_client import (
    AsyncClient,
    AsyncHttpTransport,
    Client,
    HttpTransport,
    InvalidRequestError,
    OctavoError,
    RejectedError,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    UnavailableError,
    UnknownModelError,
)
from octavo_client._http_call import is_loopback
from octavo_client._http_wire import error_from_response
from tests.client.scripted_http import HttpReceived, Message, ScriptedHttpServer

CERTIFICATE = Path(__file__).with_name("localhost.pem")


@pytest.fixture
def server(http_server: ScriptedHttpServer) -> ScriptedHttpServer:
    return http_server


@pytest.mark.parametrize("url", ["ftp://localhost:8000", "http://", "http://host:port", "://x"])
def test_url_must_be_of_http(url: str) -> None:
    with pytest.raises(ValueError, match="url is"):
        Client(url)
    with pytest.raises(ValueError, match="url is"):
        AsyncClient(url)


def test_request_is_one_post_with_the_inputs(client: Client, server: ScriptedHttpServer) -> None:
    list(client.stream("Grüß Gott", max_tokens=3, request_id="r1"))

    assert server.paths == ["/v2/models/llm", "/v2/models/llm/generate_stream"]
    assert server.last.metadata["content-type"] == "application/json"
    assert server.last.metadata["accept-encoding"] == "identity"
    assert server.last.body == {
        "id": "r1",
        "text_input": "Grüß Gott",
        "stream": True,
        "exclude_input_in_output": True,
        "sampling_parameters": '{"max_tokens": 3}',
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_whole_answers_take_the_same_route(client: Client, server: ScriptedHttpServer) -> None:
    client.generate("Say hello")

    assert server.paths[-1] == "/v2/models/llm/generate_stream"
    assert server.last.body["stream"] is False


def test_model_and_version_and_the_proxys_path_are_in_the_url(server: ScriptedHttpServer) -> None:
    with (
        Client(f"{server.url}/llms/", model="a/b", model_version="2") as client,
        pytest.raises(UnknownModelError),
    ):
        client.generate("Say hello")

    assert server.paths == ["/llms/v2/models/a%2Fb/versions/2"]


def test_connection_is_kept_after_a_whole_answer(
    client: Client, server: ScriptedHttpServer
) -> None:
    def fail(call: HttpReceived) -> Iterator[Message]:
        yield call.reply("Hel")
        yield call.error("boom")

    client.generate("Say hello")
    with client.stream("Say hello") as stream:
        while not next(stream).finish_reason:
            pass
    server.script = fail  # type: ignore[assignment]
    with pytest.raises(ServerError):
        client.generate("Say hello")
    client.health()

    assert server.num_connections == 1


def test_more_streams_than_httpx_would_allow(client: Client, server: ScriptedHttpServer) -> None:
    count = 120
    all_open = threading.Barrier(count)

    def script(call: HttpReceived) -> Iterator[Message]:
        all_open.wait(20)
        yield call.reply(call.inputs["text_input"], "stop")

    server.script = script  # type: ignore[assignment]

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda i: client.generate(f"p{i}").text, range(count)))

    assert answers == [f"p{i}" for i in range(count)]


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch, server: ScriptedHttpServer) -> ScriptedHttpServer:
    """The server as the environment's proxy."""
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    return server


def test_proxy_of_the_environment_is_for_other_machines(
    proxied: ScriptedHttpServer, dead_address: str
) -> None:
    for url in (dead_address, "http://llm.invalid:8000"):
        with Client(url) as client, pytest.raises(OctavoError):
            client.generate("Say hello")

    assert proxied.paths == ["http://llm.invalid:8000/v2/models/llm"]


def test_proxy_of_the_environment_may_be_asked_for_or_refused(
    proxied: ScriptedHttpServer, dead_address: str
) -> None:
    asked = HttpTransport(dead_address, trust_env=True)
    with Client(transport=asked) as client, pytest.raises(OctavoError):
        client.generate("Say hello")
    assert proxied.paths == [f"{dead_address}/v2/models/llm"]

    refused = HttpTransport("http://llm.invalid:8000", trust_env=False)
    with Client(transport=refused) as client, pytest.raises(UnavailableError, match="connect"):
        client.generate("Say hello")
    assert len(proxied.paths) == 1


@pytest.fixture
def dead_address(server: ScriptedHttpServer) -> Iterator[str]:
    other = ScriptedHttpServer()
    other.stop()
    yield other.url


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True),
        ("llm.localhost", True), ("10.0.0.1", False), ("llm.example.com", False),
        ("localhost.example.com", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.fixture
def tls_server() -> Iterator[ScriptedHttpServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    scripted = ScriptedHttpServer(tls=context)
    yield scripted
    scripted.stop()


def test_tls_checks_the_certificate(tls_server: ScriptedHttpServer) -> None:
    with Client(tls_server.url) as client, pytest.raises(UnavailableError, match="CERTIFICATE"):
        client.generate("Say hello")

    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    with Client(transport=HttpTransport(tls_server.url, verify=trusting)) as client:
        assert client.generate("Say hello").text == "Hello, world"


def test_tls_stream_ends_with_its_timeout_and_with_its_client(
    tls_server: ScriptedHttpServer,
) -> None:
    def script(call: HttpReceived) -> Iterator[Message]:
        yield call.reply("a")
        call.wait_for_end()

    tls_server.script = script  # type: ignore[assignment]
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    client = Client(transport=HttpTransport(tls_server.url, verify=trusting))
    with pytest.raises(RequestTimeoutError, match="no whole answer"):
        client.generate("Go on", timeout=0.2)
    stream = client.stream("Go on")
    next(stream)
    closing = threading.Timer(0.05, client.close)
    closing.start()
    with pytest.raises(RequestCancelledError):
        next(stream)
    closing.join()


STATUSES = {
    400: InvalidRequestError,
    401: InvalidRequestError,
    403: InvalidRequestError,
    404: UnknownModelError,
    408: RequestTimeoutError,
    413: InvalidRequestError,
    429: RejectedError,
    500: ServerError,
    501: InvalidRequestError,
    502: UnavailableError,
    503: UnavailableError,
    504: RequestTimeoutError,
    302: ServerError,
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("as_event", [False, True], ids=["answer", "event"])
def test_statuses(client: Client, server: ScriptedHttpServer, status: int, as_event: bool) -> None:
    def script(call: HttpReceived) -> Iterator[Message]:
        yield Message({"error": "something happened"}, status, is_event=as_event)

    server.script = script  # type: ignore[assignment]

    with pytest.raises(OctavoError) as caught:
        client.generate("Say hello")

    assert type(caught.value) is STATUSES[status]
    assert caught.value.message == "something happened"


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b"[]", b'"error"', b"{}"])
def test_status_speaks_where_a_proxy_does_not(body: bytes) -> None:
    error = error_from_response(httpx.Response(502, content=body))

    assert type(error) is UnavailableError
    assert error.status == "UNAVAILABLE"
    assert error.message == "HTTP status 502 Bad Gateway"


def test_metadata_may_be_refused(server: ScriptedHttpServer) -> None:
    with Client(server.url, model="nope") as client, pytest.raises(UnknownModelError) as caught:
        client.generate("Say hello")

    assert caught.value.message == "Request for unknown model: 'nope' is not found"
    assert server.received == []


def answer_with(server: ScriptedHttpServer, *pieces: Message | bytes) -> None:
    server.script = lambda call: iter(pieces)


def event(text: str, finish_reason: str = "None", **outputs: Any) -> bytes:
    body = {"text_output": text, "finish_reason": finish_reason, "num_output_tokens": 1, **outputs}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def test_events_may_come_in_any_pieces(client: Client, server: ScriptedHttpServer) -> None:
    stream = event("é") + b": still here\r\n\r\n" + event("🦙", "stop")
    answer_with(server, *(stream[i : i + 1] for i in range(len(stream))))

    assert client.generate("Say it").text == "é🦙"


def test_events_of_other_types_are_read_over(client: Client, server: ScriptedHttpServer) -> None:
    answer_with(server, event("a"), b"event: ping\ndata: now\n\n", event("b", "stop"))

    assert client.generate("Say it").text == "ab"


@pytest.mark.parametrize(
    "wrong",
    [b"data: [1]\n\n", b"data: {\n\n", event("a", logprobs="{"), event("a", token_ids=["x", None])],
    ids=["no object", "no JSON", "logprobs", "more texts"],
)
def test_event_that_cannot_be_read(
    client: Client, server: ScriptedHttpServer, wrong: bytes
) -> None:
    wrong = wrong.replace(b'"a"', b'["a", "b"]') if b"token_ids" in wrong else wrong
    answer_with(server, wrong)

    with pytest.raises(ServerError, match="cannot read the server's response"):
        client.generate("Say it")


def test_event_that_is_cut_off_does_not_count(client: Client, server: ScriptedHttpServer) -> None:
    answer_with(server, event("a"), event("b", "stop")[:-1])

    with pytest.raises(ServerError, match="incomplete"):
        client.generate("Say it")


def test_answer_that_is_no_event_stream(client: Client, server: ScriptedHttpServer) -> None:
    answer_with(server, Message({"text_output": "a"}, is_event=False))

    with pytest.raises(ServerError, match="type is 'application/json', not an event stream"):
        client.generate("Say it")


def test_async_transport_takes_the_same_arguments(tls_server: ScriptedHttpServer) -> None:
    async def ask() -> str:
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
        transport = AsyncHttpTransport(
            tls_server.url, headers={"X-Token": "secret"}, verify=trusting, trust_env=False
        )
        async with AsyncClient(transport=transport) as aclient:
            return (await aclient.generate("Say hello")).text

    assert asyncio.run(ask()) == "Hello, world"
    assert tls_server.last.metadata["x-token"] == "secret"
