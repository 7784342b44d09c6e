"""`octavo health`: does the server make tokens? For container health checks.

Triton's own readiness may stay 200 when the engine's process is dead, so a token is asked for. A
server with a full queue refuses it, or has no time for it, and is healthy all the same as long as
others get theirs: so what counts then is whether output tokens appear in its metrics.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from octavo.cli import probes
from octavo.cli.arguments import ServeArguments, chosen_ports
from octavo.cli.server_settings import ServerSettings
from octavo.errors import ConfigError

EXIT_HEALTHY, EXIT_UNHEALTHY = 0, 1

_WATCH_S = 2.5  # more than twice the time between two flushes of the metrics
_POLL_S = 0.25


def run(arguments: ServeArguments, timeout_s: float) -> int:
    """The exit code; a reason on stderr when it is not 0."""
    try:
        ports = chosen_ports(arguments)
    except ConfigError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return EXIT_UNHEALTHY
    server = ServerSettings(repository=Path(), host=arguments.host, ports=ports)
    reason = why_unhealthy(server, timeout_s)
    if reason is None:
        return EXIT_HEALTHY
    print(f"octavo: no token from {server.http_url}: {reason}", file=sys.stderr)
    return EXIT_UNHEALTHY


def why_unhealthy(server: ServerSettings, timeout_s: float) -> str | None:
    """None when tokens are made. Answers within `timeout_s` and a few seconds."""
    try:
        probes.first_token(server.generate_stream_url, timeout_s)
        return None
    except (probes.TokenError, OSError) as error:
        reason = str(error) or type(error).__name__
    return None if _makes_tokens(server.metrics_url) else reason


def _makes_tokens(metrics_url: str) -> bool:
    # Only what comes from here on counts: metrics lag behind, so older tokens may show late.
    before = probes.generated_tokens(metrics_url)
    deadline_s = time.monotonic() + _WATCH_S
    while before is not None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        now = probes.generated_tokens(metrics_url)
        if now is not None and now > before:
            return True
    return False
