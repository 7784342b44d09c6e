"""The three TCP ports of a server."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import astuple, dataclass

from octavo.cli import processes

_LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Ports:
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def __post_init__(self) -> None:
        numbers = astuple(self)
        for name, port in zip(("http", "grpc", "metrics"), numbers, strict=True):
            if not 0 < port < 65536:
                raise ValueError(f"{name} port: {port} is outside 1 to 65535")
        if len(set(numbers)) < 3:
            raise ValueError(f"ports: HTTP, gRPC and metrics must differ, not {numbers}")

    @classmethod
    def starting_at(cls, first: int) -> Ports:
        return cls(first, first + 1, first + 2)

    @classmethod
    def free(cls) -> Ports:
        """Three ports that nobody listens on now: for tests and benchmarks."""
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return cls(*(each.getsockname()[1] for each in sockets))


@dataclass(frozen=True, slots=True)
class BusyPort:
    port: int
    reason: str  # names the process to blame where it can be known


def busy_ports(ports: Ports, host: str) -> list[BusyPort]:
    return [BusyPort(port, reason) for port in astuple(ports) if (reason := _why_busy(host, port))]


def is_loopback(host: str) -> bool:
    return host in _LOOPBACK_NAMES or host.startswith("127.")


def reachable_host(host: str) -> str:
    """The address under which this machine itself reaches a server bound to `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address


def _why_busy(host: str, port: int) -> str:
    """Empty when the port can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server does: a connection in TIME_WAIT is no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            pid = processes.listener(port)
            if pid is None:
                return error.strerror or str(error)
            return f"taken by process {pid} ({processes.command_line(pid)[:60]})"
    return ""
