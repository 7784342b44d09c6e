from __future__ import annotations

import os
import socket

import pytest

from octavo.cli.ports import Ports, busy_ports, is_loopback, reachable_host


def test_busy_port_names_the_process_to_blame() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        free = Ports.free()
        busy = busy_ports(Ports(port, free.grpc, free.metrics), "127.0.0.1")
    assert [each.port for each in busy] == [port]
    assert f"taken by process {os.getpid()} (" in busy[0].reason


def test_free_ports_are_not_busy() -> None:
    assert busy_ports(Ports.free(), "127.0.0.1") == []


def test_address_of_another_machine_cannot_be_bound() -> None:
    busy = busy_ports(Ports.free(), "192.0.2.1")
    assert len(busy) == 3
    assert "assign requested address" in busy[0].reason


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 8001, 8002), "http port: 0 is outside 1 to 65535"),
        ((8000, 8001, 65536), "metrics port: 65536 is outside 1 to 65535"),
        ((8000, 8000, 8002), "must differ"),
    ],
    ids=["zero", "too-large", "twice"],
)
def test_impossible_ports_are_refused(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ports(*numbers)


def test_ports_follow_each_other_from_the_first() -> None:
    assert Ports.starting_at(9000) == Ports(http=9000, grpc=9001, metrics=9002)


def test_loopback_and_reachable_addresses() -> None:
    assert [is_loopback(host) for host in ("127.0.0.2", "localhost", "0.0.0.0")] == [
        True,
        True,
        False,
    ]
    assert [reachable_host(host) for host in ("0.0.0.0", "::", "10.0.0.1")] == [
        "127.0.0.1",
        "[::1]",
        "10.0.0.1",
    ]
