"""`octavo exec-server`, with the embedded server in the place of the container's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cli import exec_server, probes
from octavo.cli.arguments import ServeArguments
from octavo.cli.ports import Ports
from octavo.cli.server_folder import ServerFolder, prepare
from octavo.cli.server_settings import ServerSettings
from octavo.cli.triton_flags import CONTAINER_VERSION
from tests.cli.checkpoints import write_empty_checkpoint

REPOSITORY = Path(__file__).parent / "repository"
PROGRAM = """
import sys
from pathlib import Path
from octavo.cli import exec_server
from octavo.cli.arguments import ServeArguments
repository, model, port, triton = sys.argv[1:]
arguments = ServeArguments(repository=Path(repository), model=model, port=int(port))
sys.exit(exec_server.run(arguments, "2.51.0", triton=Path(triton)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ServerFolder:
    return prepare(tmp_path_factory.mktemp("server"))


@pytest.fixture
def libraries(folder: ServerFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In NVIDIA's image they are found without help."""
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(map(str, folder.library_path)))
    yield


def octavo(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [f"{sys.prefix}/bin/octavo", "exec-server", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_print_shows_the_command_for_the_container_without_the_key() -> None:
    shown = octavo("--print", "--drain-timeout", "10", "--contract", "vllm")
    assert shown.returncode == 0
    assert shown.stdout.startswith("/opt/tritonserver/bin/tritonserver ")
    for part in (
        "--exit-timeout-secs=15",
        "--model-config-name=vllm",
        "--http-address=0.0.0.0",
        "--http-max-input-size=16777216",
        "closed=<random>",
    ):
        assert part in shown.stdout


def test_version_of_the_image_decides() -> None:
    assert "--http-max-input-size" not in octavo("--print", TRITON_SERVER_VERSION="2.51.0").stdout
    unknown = octavo("--print", TRITON_SERVER_VERSION="3.0.0")
    assert unknown.returncode == 1
    assert "Triton 3.0.0: its flags are not known" in unknown.stderr


def test_outside_the_container_the_missing_binary_is_named() -> None:
    outside = octavo()
    assert outside.returncode == 1
    assert outside.stderr.endswith(
        "/opt/tritonserver/bin/tritonserver: No such file or directory\n"
    )


@pytest.mark.usefixtures("libraries")
def test_check_asks_the_binary_itself(
    folder: ServerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    triton = folder.binary.parents[1]
    assert exec_server.run(ServeArguments(), "2.51.0", check=True, triton=triton) == 0
    assert exec_server.run(ServeArguments(), CONTAINER_VERSION, check=True, triton=triton) == 1
    assert capsys.readouterr().err.endswith(
        "--help does not list --allow-client-shm, --grpc-max-response-pool-size, "
        "--http-max-input-size\n"
    )


@pytest.mark.e2e
@pytest.mark.usefixtures("libraries")
def test_process_becomes_the_server_and_leaves_by_sigterm(
    folder: ServerFolder, tmp_path: Path
) -> None:
    ports = Ports.starting_at(Ports.free().http)
    model = write_empty_checkpoint(tmp_path / "model")
    server = ServerSettings(repository=REPOSITORY, ports=ports)
    triton = folder.binary.parents[1]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, REPOSITORY, model, str(ports.http), triton],
            stdout=log,
            stderr=log,
        )
    try:
        deadline_s = time.monotonic() + 60
        while not probes.is_healthy(server.http_url):
            assert process.poll() is None, (tmp_path / "log").read_text("utf-8")
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert os.readlink(f"/proc/{process.pid}/exe") == str(folder.binary)
        assert probes.first_token(server.generate_stream_url, 10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
