"""What the two HTTP transports share: how they connect, and how a call is limited and cut off."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import httpx

from ._errors import OctavoError, RequestCancelledError, RequestTimeoutError, UnavailableError

_CONNECT_TIMEOUT_S = 20.0
"""As long as gRPC tries."""


def client_options(
    url: str,
    headers: Mapping[str, str] | None,
    verify: ssl.SSLContext | bool,
    trust_env: bool | None,
) -> dict[str, Any]:
    """The arguments of httpx.Client and httpx.AsyncClient; raises ValueError for a bad URL."""
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ValueError(f"url is {url!r}; {exc}") from exc
    if base.scheme not in ("http", "https") or not base.host:
        raise ValueError(f"url is {url!r}; must be like http://host:8000, Triton's HTTP endpoint")
    return {
        "base_url": base,
        # Triton compresses no events, and a proxy that did would hold them back.
        "headers": {"accept-encoding": "identity", **(headers or {})},
        "verify": verify,
        "trust_env": not is_loopback(base.host) if trust_env is None else trust_env,
        "limits": httpx.Limits(max_connections=None),  # httpx's own is 100: the next would wait
    }


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Connections:
    """The open connections of a transport, which close() cuts off while others read from them."""

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._streams: WeakSet[Any] = WeakSet()

    def check_open(self) -> None:
        """Raise RuntimeError when the transport has been closed."""
        if self.closed:
            raise RuntimeError("the client is closed")

    def add(self, network_stream: Any) -> None:
        """Remember an httpcore network stream for as long as it lives."""
        with self._lock:
            self._streams.add(network_stream)
        if self.closed:
            shut_down(network_stream)

    def close(self) -> None:
        """Cut off those there are, and those to come."""
        with self._lock:
            self.closed = True
            streams = list(self._streams)
        for network_stream in streams:
            shut_down(network_stream)


def shut_down(network_stream: Any) -> None:
    """End a connection so that whoever reads from it wakes up; closing its socket would not."""
    with contextlib.suppress(OSError):  # it has ended by itself
        network_stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class Call:
    """One generation's requests, which together end after `limit_s` seconds.

    httpx limits each read and not the whole, so a timer of the transport calls `cut_off`. The
    connection to cut off is known from httpcore's trace when it is new and from the response when
    it is not; before that httpx's own limit is the whole one.
    """

    def __init__(self, connections: Connections, timeout: float | None, grace_s: float) -> None:
        self.limit_s = None if timeout is None else timeout + grace_s
        self._timeout = timeout
        self._ends = math.inf if self.limit_s is None else time.monotonic() + self.limit_s
        self._connections = connections
        self._network_stream: Any = None

    @property
    def limits(self) -> httpx.Timeout:
        """For each step of a request that begins now."""
        left = None if self.limit_s is None else max(0.001, self._ends - time.monotonic())
        return httpx.Timeout(left, connect=min(left or math.inf, _CONNECT_TIMEOUT_S))

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's trace extension."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._connections.add(info["return_value"])
            self.attach(info["return_value"])

    async def trace_async(self, event: str, info: Mapping[str, Any]) -> None:
        """The same as asyncio wants it."""
        self.trace(event, info)

    def attach(self, network_stream: Any) -> None:
        """Tell over which connection the call goes."""
        self._network_stream = network_stream
        if self._is_over:
            self.cut_off()

    def cut_off(self) -> None:
        """Make the reader of the answer fail now."""
        if self._network_stream is not None:
            shut_down(self._network_stream)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._ends

    def error(self, exc: httpx.HTTPError) -> OctavoError:
        """What a failure of the network means for the caller."""
        if self._connections.closed:
            return RequestCancelledError("the client was closed", status="CANCELLED")
        connecting = isinstance(exc, (httpx.ConnectTimeout, httpx.ConnectError))
        if self._is_over or (isinstance(exc, httpx.TimeoutException) and not connecting):
            text = f"no whole answer within {self._timeout:.3g} s"
            return RequestTimeoutError(text, status="DEADLINE_EXCEEDED")
        what = "failed to connect" if connecting else "the connection broke"
        reason = str(exc) or type(exc).__name__
        return UnavailableError(f"{what}: {reason}", status="UNAVAILABLE")
