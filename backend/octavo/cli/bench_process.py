"""The process of a command that holds torch, as seen from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from octavo.errors import OctavoError


class WorkerEndedError(OctavoError):
    """Without having told all: what it had to say is on stderr."""


EXIT_MEASURED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
_QUIET_PROFILER = {"KINETO_LOG_LEVEL": "99"}  # torch's says on stderr that it starts and stops


@contextmanager
def worker(module: str, options: Mapping[str, object]) -> Iterator[Iterator[dict[str, Any]]]:
    """Events of a module that serves as octavo.worker does; its process ends with the
    context. Raises OctavoError with what it says, WorkerEndedError if
    it does not get through."""
    with subprocess.Popen(
        [sys.executable, "-m", module],
        # As the server's environment has it; the caller's own value comes first.
        env={"GOMP_SPINCOUNT": "5000", **_QUIET_PROFILER, **os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for this process, which then closes the worker's stdin.
        preexec_fn=_ignore_ctrl_c,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(options) + "\n")
            process.stdin.flush()
            yield _events(process.stdout)
            if process.wait() != 0:
                raise WorkerEndedError(f"the working process ended with {process.returncode}")
        finally:
            process.kill()


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            raise OctavoError(event["error"])
        yield event
