"""What only gRPC has: shapes, Triton's own fields, statuses, the raw form of tensors."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import grpc
import pytest

from octavo_client import (
    Client,
    GrpcTransport,
    InvalidRequestError,
    OctavoError,
    RejectedError,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    UnavailableError,
    UnknownModelError,
)
from tests.client.scripted_grpc import GrpcReceived, ScriptedGrpcServer

STATUSES = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "NOT_FOUND": UnknownModelError,
    "UNIMPLEMENTED": InvalidRequestError,
    "UNAUTHENTICATED": InvalidRequestError,
    "PERMISSION_DENIED": InvalidRequestError,
    "RESOURCE_EXHAUSTED": RejectedError,
    "DEADLINE_EXCEEDED": RequestTimeoutError,
    "UNAVAILABLE": UnavailableError,
    "CANCELLED": RequestCancelledError,
    "INTERNAL": ServerError,
    "UNKNOWN": ServerError,
}


@pytest.fixture
def server(grpc_server: ScriptedGrpcServer) -> ScriptedGrpcServer:
    return grpc_server


@pytest.fixture(params=[True, False], ids=["batched", "flat"])
def either_form(request: pytest.FixtureRequest) -> Iterator[ScriptedGrpcServer]:
    scripted = ScriptedGrpcServer(batched=request.param)
    yield scripted
    scripted.stop()


def test_shapes_follow_the_form_of_the_model(either_form: ScriptedGrpcServer) -> None:
    with Client(either_form.url) as client:
        assert client.generate([5, 6, 7]).text == "Hello, world"
        assert client.generate("Say hello").text == "Hello, world"

    by_ids, by_text = either_form.received
    batch = [1] if either_form.batched else []
    assert by_ids.shapes["input_ids"] == [*batch, 3]
    assert by_ids.inputs["input_ids"] == [5, 6, 7]
    assert set(map(tuple, by_text.shapes.values())) == {(*batch, 1)}
    assert either_form.metadata_queries == 1


@pytest.mark.parametrize("url", ["http://localhost:8000", ""])
def test_url_must_be_host_and_port(url: str) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        GrpcTransport(url)


def test_plain_request_leaves_tritons_fields_alone(
    client: Client, server: ScriptedGrpcServer
) -> None:
    client.generate("Say hello")

    request = server.last.request
    assert request.model_name == "llm"
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert set(request.parameters) == {"triton_enable_empty_final_response"}


def test_priority_goes_into_the_json_and_into_tritons_field(
    client: Client, server: ScriptedGrpcServer
) -> None:
    client.generate("Say hello", priority=1)

    assert server.last.sampling == {"priority": 1}
    assert server.last.request.parameters["priority"].uint64_param == 1


def test_timeout_limits_tritons_queue_too(client: Client, server: ScriptedGrpcServer) -> None:
    client.generate("Say hello", timeout=30)

    assert 29e6 < server.last.request.parameters["timeout"].int64_param <= 30e6


def test_header_that_crashes_servers_is_not_sent(
    client: Client, server: ScriptedGrpcServer
) -> None:
    client.generate("Say hello")

    assert "triton_grpc_error" not in server.last.metadata


@pytest.mark.parametrize("status", STATUSES)
def test_statuses(client: Client, server: ScriptedGrpcServer, status: str) -> None:
    def script(call: GrpcReceived) -> Iterator[Any]:
        call.context.abort(grpc.StatusCode[status], "something happened")
        yield

    server.script = script  # type: ignore[assignment]

    with pytest.raises(OctavoError) as caught:
        client.generate("Say hello")

    assert type(caught.value) is STATUSES[status]
    assert caught.value.status == status
    assert caught.value.message == "something happened"
    assert isinstance(caught.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Exceeds maximum queue size", RejectedError),
        ("Request timeout expired", RequestTimeoutError),
    ],
)
def test_text_says_more_than_a_status(
    client: Client, server: ScriptedGrpcServer, text: str, kind: type[OctavoError]
) -> None:
    def script(call: GrpcReceived) -> Iterator[Any]:
        call.context.abort(grpc.StatusCode.UNAVAILABLE, text)
        yield

    server.script = script  # type: ignore[assignment]

    with pytest.raises(kind) as caught:
        client.generate("Say hello")

    assert caught.value.status == "UNAVAILABLE"


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00ab", b"\x01", b"\x01\x00\x00\x00\xff"])
def test_malformed_text_is_an_error_of_the_server(
    client: Client, server: ScriptedGrpcServer, raw: bytes
) -> None:
    def script(call: GrpcReceived) -> Iterator[Any]:
        response = call.reply("", "stop")
        response.infer_response.raw_output_contents[0] = raw
        yield response

    server.script = script  # type: ignore[assignment]

    with pytest.raises(ServerError, match="cannot read the server's response"):
        client.generate("Say hello")


def test_interrupts_at_any_moment_leave_the_client_usable(server: ScriptedGrpcServer) -> None:
    """gRPC's own iteration in the main thread loses the channel to one in ten of these: an
    exception between the taking of a lock and its `with` block leaves the lock taken."""

    def script(call: GrpcReceived) -> Iterator[Any]:
        while call.inputs["text_input"] == "Go on" and not call.ended.is_set():
            yield call.reply("a")
        yield call.reply("a", "stop")

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # Python swallows what is raised in a callback of weakref's; the timer goes off again.
        if frame is None or "weakref" not in frame.f_code.co_filename:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    server.script = script
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Client(server.url) as client, ThreadPoolExecutor(1) as pool:
            for count in range(60):
                with pytest.raises(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, 0.003 + 0.0003 * count, 0.5)
                    for _ in client.stream("Go on"):
                        pass
                answer = pool.submit(client.generate, "Be brief")
                assert answer.result(timeout=10).text == "a"
            assert all(call.ended.wait(5) for call in server.received), "it still generates"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
