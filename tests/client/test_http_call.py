"""A call that is cut off while it connects, or just after its transport was closed."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo_client import Client, HttpTransport, RequestTimeoutError
from octavo_client._http_call import Call, Connections

CERTIFICATE = Path(__file__).with_name("localhost.pem")


class NetworkStream:
    """What httpcore gives, around one end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self._end


@pytest.fixture
def pair() -> Iterator[tuple[NetworkStream, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield NetworkStream(ours), theirs


def is_shut(theirs: socket.socket) -> bool:
    try:
        return theirs.recv(1) == b""
    except BlockingIOError:
        return False


def test_connection_that_opens_after_the_end_of_its_call_is_cut_off(
    pair: tuple[NetworkStream, socket.socket],
) -> None:
    stream, theirs = pair
    in_time = Call(Connections(), timeout=60, grace_s=0)
    too_late = Call(Connections(), timeout=1e-9, grace_s=0)

    in_time.attach(stream)
    assert not is_shut(theirs)
    too_late.attach(stream)
    assert is_shut(theirs)


def test_connection_that_opens_while_its_transport_closes_is_cut_off(
    pair: tuple[NetworkStream, socket.socket],
) -> None:
    stream, theirs = pair
    connections = Connections()
    call = Call(connections, timeout=None, grace_s=0)
    connections.close()

    call.trace("connection.connect_tcp.started", {})
    assert not is_shut(theirs)
    call.trace("connection.connect_tcp.complete", {"return_value": stream})
    assert is_shut(theirs)


@pytest.fixture
def slow_to_connect() -> Iterator[str]:
    """Shakes hands after 0.8 s, and says nothing then."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def serve() -> None:
        connection, _ = listener.accept()
        time.sleep(0.8)
        with context.wrap_socket(connection, server_side=True) as silent:
            while silent.recv(1000):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    thread.join()
    listener.close()


def test_time_to_connect_counts(slow_to_connect: str) -> None:
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    with Client(transport=HttpTransport(slow_to_connect, verify=trusting)) as client:
        started = time.monotonic()

        with pytest.raises(RequestTimeoutError, match="no whole answer"):
            client.generate("Say hello", timeout=1)

        assert time.monotonic() - started < 1.9
