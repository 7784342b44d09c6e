"""`octavo serve` as its users run it: a process of its own, signals, exit codes."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from octavo.cli import processes, serve, shared_memory
from octavo.cli.ports import Ports
from octavo.cli.server_settings import ServerSettings
from tests.cli.checkpoints import write_empty_checkpoint
from tests.cli.test_embedded_server import REPOSITORY, generate

pytestmark = pytest.mark.e2e

OCTAVO = Path(sys.executable).with_name("octavo")


class Serving:
    """One `octavo serve`, and what it has printed so far."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        self.settings = ServerSettings(repository=REPOSITORY, ports=ports)
        self.command = [
            str(OCTAVO),
            "serve",
            str(write_empty_checkpoint(folder / "model")),
            f"--repository={REPOSITORY}",
            f"--http-port={ports.http}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
            f"--log-file={folder / 'server.log'}",
            "--drain-timeout=5",
        ]
        self.output = ""
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        deadline_s = time.monotonic() + timeout_s
        while text not in self.output:
            assert self._reader is not None
            ended = not self._reader.is_alive() and text not in self.output
            assert not ended and time.monotonic() < deadline_s, f"no {text!r} in:\n{self.output}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def exit_code(self, timeout_s: float = 60) -> int:
        assert self.process is not None
        assert self._reader is not None
        code = self.process.wait(timeout_s)
        self._reader.join()
        return code

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        if self.process is not None:
            self.exit_code()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.output += line


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path, Ports.free())
    yield serving
    serving.stop()
    assert serving.process is not None
    own = f"{shared_memory.own_prefix()}{serving.process.pid}_"
    assert processes.with_argument(own) == []
    assert list(shared_memory.SHM_DIR.glob(f"{own}*")) == []


def test_serve_announces_itself_and_drains_on_ctrl_c(serving: Serving) -> None:
    serving.start()
    serving.wait_for("Ctrl-C drains and stops.")
    urls = serving.settings
    for text in (urls.http_url, urls.grpc_url, urls.metrics_url, urls.generate_stream_url):
        assert text in serving.output
    answers: list[str] = []
    request = threading.Thread(target=lambda: answers.append(generate(urls, "slow:1.5")))
    request.start()
    time.sleep(0.5)
    serving.signal(signal.SIGINT)
    assert serving.exit_code() == serve.EXIT_STOPPED
    request.join()
    assert answers == ["slow:1.5 [1, 1]"]
    assert "octavo: draining" in serving.output


def test_printed_curl_line_works_as_it_stands(serving: Serving) -> None:
    serving.start()
    serving.wait_for("Ctrl-C drains and stops.")
    lines = [line.strip() for line in serving.output.splitlines()]
    curl = next(line for line in lines if "generate_stream" in line and line.startswith("curl"))
    answer = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=30)
    assert "The function returns [1, 1]" in answer.stdout


def test_second_signal_stops_at_once(serving: Serving) -> None:
    serving.start()
    serving.wait_for("Ctrl-C drains and stops.")
    request = threading.Thread(target=_generate_in_vain, args=(serving.settings, "slow:30"))
    request.start()
    time.sleep(0.5)
    serving.signal(signal.SIGTERM)
    serving.wait_for("octavo: draining")
    started_s = time.monotonic()
    serving.signal(signal.SIGINT)
    assert serving.exit_code() == serve.EXIT_CUT_OFF
    assert time.monotonic() - started_s < 3
    request.join()


def test_dead_engine_ends_the_launcher(serving: Serving) -> None:
    serving.start()
    serving.wait_for("Ctrl-C drains and stops.")
    _generate_in_vain(serving.settings, "die")
    assert serving.exit_code() == serve.EXIT_ENGINE_DIED
    assert re.search(r"the engine's process \(stub \d+\) died; stopping", serving.output)
    assert "the whole log: " in serving.output


def test_engine_that_reports_its_end_ends_the_launcher(serving: Serving) -> None:
    serving.start()
    serving.wait_for("Ctrl-C drains and stops.")
    generate(serving.settings, "engine-down")
    assert serving.exit_code() == serve.EXIT_ENGINE_DIED
    assert "octavo_engine_up is 0" in serving.output


def test_server_ends_with_a_launcher_that_is_killed(serving: Serving) -> None:
    serving.start()
    serving.wait_for("Ctrl-C drains and stops.")
    assert serving.process is not None
    own = f"{shared_memory.own_prefix()}{serving.process.pid}_"
    assert len(processes.with_argument(own)) == 2, "the server and its stub"
    serving.signal(signal.SIGKILL)
    serving.exit_code()
    deadline_s = time.monotonic() + 10
    while processes.with_argument(own) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert processes.with_argument(own) == []
    # Its regions are left for the next launcher to clear.
    assert shared_memory.clear(shared_memory.stale_regions([own], min_age_s=0)) > 0


def test_refusal_of_the_engine_is_one_line(serving: Serving) -> None:
    serving.start(ECHO_INITIALIZE="refuse")
    assert serving.exit_code() == serve.EXIT_NOT_STARTED
    assert "octavo: block_size = 3: not a power of two\n" in serving.output
    assert "trying once more" not in serving.output


def test_failed_start_is_tried_once_more_and_says_so(serving: Serving, tmp_path: Path) -> None:
    serving.start(ECHO_INITIALIZE=f"die-once:{tmp_path / 'died'}")
    serving.wait_for("trying once more")
    serving.wait_for("Ctrl-C drains and stops.")


def test_busy_port_is_fatal_before_the_start(serving: Serving) -> None:
    port = serving.settings.ports.metrics
    with socket.create_server(("127.0.0.1", port)):
        serving.start()
        assert serving.exit_code() == serve.EXIT_NOT_STARTED
    assert f"octavo: fatal: ports: {port} taken by process {os.getpid()} (" in serving.output
    assert "(fix: stop that process, or choose others: make serve PORT=9000" in serving.output
    assert "starting tritonserver" not in serving.output


def test_missing_model_is_one_line(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").unlink()
    serving.start()
    assert serving.exit_code() == serve.EXIT_NOT_STARTED
    assert serving.output.splitlines()[-1].endswith("/model: holds no config.json")


def test_ctrl_c_during_the_start_stops_the_server(serving: Serving) -> None:
    serving.start()
    serving.wait_for("loading the model")
    serving.signal(signal.SIGINT)
    assert serving.exit_code() == serve.EXIT_STOPPED


def test_drain_goes_on_when_the_terminal_is_gone(tmp_path: Path) -> None:
    serving = Serving(tmp_path, Ports.free())
    with terminal_of(serving.command) as (process, terminal):
        screen = b""
        while b"Ctrl-C drains and stops." not in screen:
            screen += os.read(terminal, 4096)
        answers: list[str] = []
        request = threading.Thread(
            target=lambda: answers.append(generate(serving.settings, "slow:1.5"))
        )
        request.start()
        time.sleep(0.5)
        os.close(terminal)  # hangs up
        assert process.wait(30) == serve.EXIT_STOPPED
        request.join()
    assert answers == ["slow:1.5 [1, 1]"]


def test_ctrl_c_under_make_drains_and_make_succeeds(tmp_path: Path) -> None:
    """The terminal sends Ctrl-C to make too, which would turn it into an error."""
    makefile = tmp_path / "Makefile"
    command = " ".join(Serving(tmp_path, Ports.free()).command)
    makefile.write_text(f"serve:\n\t@{command}\n", encoding="utf-8")
    with terminal_of(["make", "-f", str(makefile), "serve"]) as (process, terminal):
        screen = b""
        while b"Ctrl-C drains and stops." not in screen:
            screen += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while b"octavo: stopped" not in screen:
            screen += os.read(terminal, 4096)
        assert process.wait(30) == 0
    assert b"Error" not in screen
    assert b"Interrupt" not in screen


@contextmanager
def terminal_of(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Runs a command in the foreground of a terminal of its own."""
    ours, theirs = pty.openpty()
    take_terminal = "import fcntl, os, sys, termios; os.setsid(); "
    take_terminal += "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", take_terminal, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
        with suppress(OSError):  # closed already
            os.close(ours)


def _generate_in_vain(settings: ServerSettings, prompt: str) -> None:
    with suppress(OSError, HTTPException):  # the server is stopped under our hands
        generate(settings, prompt)
