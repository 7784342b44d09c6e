"""`python -m loadtest`, which `make loadtest` runs."""

from __future__ import annotations

import argparse
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.__main__ import locust_command, parse
from loadtest.records import read
from tests.e2e.target import wait_until
from tests.loadtest.locust_runs import ROOT


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def command(*arguments: str) -> list[str]:
    args, rest = parse(arguments)
    assert isinstance(args, argparse.Namespace)
    return locust_command(args, rest, Path("folder"), "http://host:1", "host:2")


def test_default_is_an_open_loop_of_a_minute_within_octavo_tinys_limits() -> None:
    made = command()
    assert (value(made, "--arrival"), value(made, "--rate")) == ("poisson", "1.0")
    assert value(made, "--run-time") == "60s"
    assert (value(made, "--max-model-len"), value(made, "--vocab-size")) == ("2048", "4096")
    assert (value(made, "--host"), value(made, "--grpc-address")) == ("http://host:1", "host:2")


def test_users_make_it_a_closed_loop() -> None:
    made = command("--users", "7")
    assert (value(made, "--arrival"), value(made, "--users")) == ("closed", "7")
    assert value(made, "--spawn-rate") == "7"
    assert "--rate" not in made


def test_other_options_go_to_locust() -> None:
    assert command("--processes", "2", "--seed", "5")[-4:] == ["--processes", "2", "--seed", "5"]


@pytest.mark.e2e
def test_ctrl_c_still_reports_and_stops_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "loadtest", "--rate", "4", "--run-time", "120s",
            "--input-tokens", "40", "--output-tokens", "8", "--output", str(folder),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        path = folder / "requests-0.jsonl"
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") > 6, "answers", 60)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    (file,) = read(folder)
    ok = [record for record in file.records if record.status == "ok"]
    assert len(ok) >= 5
    assert all(sum(record.output_tokens) == record.max_tokens for record in ok)
    assert "Traceback" not in output
    assert "Latencies, ms" in output
    assert output.rstrip().endswith(f"the report is {folder}/report.html")
    assert (folder / "report.html").exists()
    match = re.search(r"serving on http://127\.0\.0\.1:(\d+)", output)
    assert match is not None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(match[1]))) != 0
