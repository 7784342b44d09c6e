"""What Locust loads: `locust -f loadtest/locustfile.py --host http://localhost:8000 ...`.

All options are in docs/load-testing.md and `locust -f loadtest/locustfile.py --help`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent
from locust import events, stats
from locust.env import Environment
from locust.runners import WorkerRunner

# Before any channel: gRPC's core would hold up all greenlets otherwise.
grpc.experimental.gevent.init_gevent()

# Locust loads this file by its path, from whatever folder it was started in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest import report  # noqa: E402
from loadtest.coordinator import Coordinator  # noqa: E402
from loadtest.settings import add_options  # noqa: E402
from loadtest.users import StreamUser  # noqa: E402

__all__ = ["StreamUser"]

stats.PERCENTILES_TO_REPORT = [0.5, 0.9, 0.95, 0.99]


def on_init(environment: Environment, **_: Any) -> None:
    def on_finished(folder: Path) -> None:
        if not report.write(folder).validity.valid:
            environment.process_exit_code = report.EXIT_INVALID

    coordinator = Coordinator(environment, on_finished)
    StreamUser.coordinator = coordinator
    environment.events.test_start.add_listener(coordinator.start)
    environment.events.test_stopping.add_listener(coordinator.finish)

    def on_quitting(**_: Any) -> None:
        coordinator.finish(cut_off=True)
        if isinstance(environment.runner, WorkerRunner) and environment.process_exit_code is None:
            # The master judges the run; a failed request in a worker is no failed worker.
            environment.process_exit_code = 0

    environment.events.quitting.add_listener(on_quitting)
    # As an exception, Ctrl-C would be raised in whatever greenlet runs at the moment, and end with
    # it; as SIGTERM it ends the run.
    gevent.signal_handler(signal.SIGINT, os.kill, os.getpid(), signal.SIGTERM)


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(on_init)
