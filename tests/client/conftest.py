"""A scripted server of each protocol, and a client that is connected to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from octavo_client import Client
from tests.client.scripted_grpc import ScriptedGrpcServer
from tests.client.scripted_http import ScriptedHttpServer
from tests.client.scripted_server import ScriptedServer


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    """What the client speaks: every test that has a server or an address runs over both."""
    return str(request.param)


@pytest.fixture
def server(protocol: str) -> Iterator[ScriptedServer]:
    scripted = ScriptedGrpcServer() if protocol == "grpc" else ScriptedHttpServer()
    yield scripted
    scripted.stop()


@pytest.fixture
def grpc_server() -> Iterator[ScriptedGrpcServer]:
    scripted = ScriptedGrpcServer()
    yield scripted
    scripted.stop()


@pytest.fixture
def http_server() -> Iterator[ScriptedHttpServer]:
    scripted = ScriptedHttpServer()
    yield scripted
    scripted.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected


@pytest.fixture
def dead_url(protocol: str) -> Iterator[str]:
    """Where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        yield address if protocol == "grpc" else f"http://{address}"
