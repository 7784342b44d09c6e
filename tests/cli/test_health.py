"""`octavo health` where there is no server; with one, it is in tests/container."""

from __future__ import annotations

import pytest

from octavo.cli import health
from octavo.cli.arguments import ServeArguments
from octavo.cli.ports import Ports


def test_nobody_there_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    ports = Ports.free()
    arguments = ServeArguments(port=ports.http, metrics_port=ports.metrics)
    assert health.run(arguments, timeout_s=60) == health.EXIT_UNHEALTHY
    error = capsys.readouterr().err
    assert error.startswith(f"octavo: no token from http://127.0.0.1:{ports.http}: ")
    assert "refused" in error


def test_port_out_of_range_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert health.run(ServeArguments(port=70000), timeout_s=1) == health.EXIT_UNHEALTHY
    assert capsys.readouterr().err == "octavo: port: 70000 is outside 1 to 65533\n"
