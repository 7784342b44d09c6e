"""The health check of docker-compose.yml, run for real against the embedded server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cli import probes
from tests.container.compose import engines
from tests.e2e.target import REPOSITORY, Target, prompt_ids, serving

pytestmark = pytest.mark.e2e

HANGING_PROMPT_TOKENS = 77  # of stuck_model.py


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One sequence at a time, so that a few requests fill it."""
    with serving(
        tmp_path_factory.mktemp("health"), "vllm", max_num_seqs=1, max_num_waiting=0
    ) as target:
        yield target


def check(target: Target, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """As in the container, but for the server's ports and, if given, a shorter wait."""
    kind, program, *arguments = engines()["octavo-cpu"]["healthcheck"]["test"]
    assert kind == "CMD"
    ports = target.settings.ports
    command = [f"{sys.prefix}/bin/{program}", *arguments]
    command += [f"--port={ports.http}", f"--metrics-port={ports.metrics}"]
    if timeout_s is not None:
        command.append(f"--timeout={timeout_s}")
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_healthy_server_makes_a_token(target: Target) -> None:
    before = target.settled_metrics().value("octavo_generation_tokens_total")
    assert check(target).returncode == 0
    after = target.settled_metrics().value("octavo_generation_tokens_total")
    assert after == before + 1


def test_busy_server_is_healthy_by_the_tokens_of_others(target: Target) -> None:
    streams = [target.send("a", max_tokens=1800) for _ in range(3)]
    streams[0].wait_for_first()
    with pytest.raises(TimeoutError):
        probes.first_token(target.settings.generate_stream_url, 0.5)
    checked = check(target, timeout_s=2)
    assert not streams[-1].is_done, "it was not busy"
    for stream in streams:
        stream.cancel()
    assert (checked.returncode, checked.stderr) == (0, "")
    target.wait_until_idle()


def test_engine_that_hangs_fails_though_all_else_says_it_is_well(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    model = Path(__file__).with_name("stuck_model.py")
    shutil.copy(model, repository / "llm" / "1" / "model.py")
    with serving(tmp_path, "vllm", repository=repository) as target:
        assert check(target).returncode == 0
        target.send(prompt_ids(HANGING_PROMPT_TOKENS), max_tokens=2)
        began_s = time.monotonic()
        hanging = check(target, timeout_s=2)
        assert 2 < time.monotonic() - began_s < 10
        assert probes.is_healthy(target.settings.http_url)
        assert probes.engine_up(target.settings.metrics_url)
        assert hanging.returncode == 1
        assert re.fullmatch(r"octavo: no token from http://\S+: timed out\n", hanging.stderr)


def test_dead_engine_fails_though_the_server_says_ready(target: Target) -> None:
    """The last test: nothing brings this server back."""
    os.kill(target.stub(), signal.SIGKILL)
    dead = check(target, timeout_s=2)
    assert probes.is_healthy(target.settings.http_url)
    assert dead.returncode == 1
    assert "is not healthy" in dead.stderr


def test_nobody_there_fails(target: Target) -> None:
    target.server.kill()
    gone = check(target)
    assert gone.returncode == 1
    assert "refused" in gone.stderr
