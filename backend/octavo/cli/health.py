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
    """None when tokens are made. Answers within about `timeout_s`."""
    asked_s = time.monotonic()
    before = probes.generated_tokens(server.metrics_url)
    try:
        probes.first_token(server.generate_stream_url, timeout_s)
        return None
    except (probes.TokenError, OSError) as error:
        reason = str(error) or type(error).__name__
    while before is not None:
        now = probes.generated_tokens(server.metrics_url)
        if now is not None and now > before:
            return None
        if now is None or time.monotonic() > asked_s + timeout_s:
            break
        time.sleep(_POLL_S)
    return reason
