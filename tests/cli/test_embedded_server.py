"""The real tritonserver, with a model that has no engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import Queue
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as grpc

from octavo.cli import processes, shared_memory
from octavo.cli.embedded_server import EmbeddedServer, ServerStartError
from octavo.cli.ports import Ports
from octavo.cli.server_settings import ServerSettings
from tests.cli.checkpoints import write_empty_checkpoint

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parent / "repository"


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return make_settings(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    own = f"{shared_memory.own_prefix()}{os.getpid()}_"
    assert processes.with_argument(own) == []
    assert list(shared_memory.SHM_DIR.glob(f"{own}*")) == []


def make_settings(tmp_path: Path, **changes: object) -> ServerSettings:
    values: dict[str, object] = {
        "repository": REPOSITORY,
        "ports": Ports.free(),
        "log_file": tmp_path / "server.log",
        "drain_timeout_s": 5.0,
        "ready_timeout_s": 60.0,
        **changes,
    }
    return ServerSettings(**values)  # type: ignore[arg-type]


def generate(settings: ServerSettings, prompt: str) -> str:
    """The text, or the error's text: an error before the first response has a status of its own."""
    body = json.dumps({"text_input": prompt, "stream": True}).encode()
    try:
        with urlopen(Request(settings.generate_stream_url, data=body), timeout=30) as response:
            event = json.loads(response.read().removeprefix(b"data: "))
    except HTTPError as error:
        with error:
            event = json.loads(error.read().removeprefix(b"data: "))
    return str(event.get("text_output") or event["error"])


def test_server_serves_and_stops_clean(settings: ServerSettings) -> None:
    server = EmbeddedServer(settings)
    steps: list[str] = []
    server.start(steps.append)
    assert steps == ["starting tritonserver", "loading the model", "waiting for the first token"]
    assert generate(settings, "Hello") == "Hello [1, 1]"
    assert server.failure() is None
    assert server.stop()
    assert server.failure() == "the server is not started"
    assert server.stop(), "stopping once more does nothing"


def test_vllm_contract_and_engine_settings_reach_the_model(tmp_path: Path) -> None:
    checkpoint = write_empty_checkpoint(tmp_path / "model")
    settings = make_settings(
        tmp_path, contract="vllm", model=checkpoint, engine_overrides={"block_size": "8"}
    )
    with EmbeddedServer(settings):
        assert generate(settings, "Hello") == "Hello [1]"
        assert generate(settings, "env:OCTAVO_MODEL") == str(checkpoint)
        assert generate(settings, "env:OCTAVO_ENGINE_BLOCK_SIZE") == "8"


def test_running_request_is_finished_before_the_server_stops(settings: ServerSettings) -> None:
    answers: list[str] = []
    with EmbeddedServer(settings) as server:
        request = threading.Thread(target=lambda: answers.append(generate(settings, "slow:1.5")))
        request.start()
        time.sleep(0.5)
        assert server.stop()
        request.join()
    assert answers == ["slow:1.5 [1, 1]"]


def test_request_beyond_the_drain_bound_is_cut_off(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, drain_timeout_s=0)
    with EmbeddedServer(settings) as server:
        request = threading.Thread(target=_generate_in_vain, args=(settings, "slow:30"))
        request.start()
        time.sleep(0.5)
        assert not server.stop()
        request.join()


def test_idle_connections_of_clients_do_not_hold_up_the_drain(settings: ServerSettings) -> None:
    answers: Queue[object] = Queue()
    with (
        EmbeddedServer(settings) as server,
        grpc.InferenceServerClient(settings.grpc_url) as client,
    ):
        http = HTTPConnection("127.0.0.1", settings.ports.http)
        http.request("GET", "/v2/health/ready")
        assert http.getresponse().read() == b""
        client.start_stream(lambda result, error: answers.put(error or result))
        prompt = grpc.InferInput("text_input", [1, 1], "BYTES")
        prompt.set_data_from_numpy(np.array([[b"Hello"]], dtype=object))
        client.async_stream_infer("llm", [prompt])
        assert not isinstance(answers.get(timeout=10), Exception)
        started_s = time.monotonic()
        assert server.stop()
        assert time.monotonic() - started_s < settings.exit_timeout_s
        http.close()


def test_refusal_of_the_engine_is_told_and_not_tried_again(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_INITIALIZE", "refuse")
    retries: list[str] = []
    with pytest.raises(ServerStartError, match=r"^block_size = 3: not a power of two$"):
        EmbeddedServer(settings).start(on_retry=retries.append)
    assert retries == []


def test_start_that_fails_once_is_tried_again(
    settings: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_INITIALIZE", f"die-once:{tmp_path / 'died'}")
    retries: list[str] = []
    server = EmbeddedServer(settings)
    server.start(on_retry=retries.append)
    assert generate(settings, "Hello") == "Hello [1, 1]"
    assert server.stop()
    assert [("is not healthy" in retry) for retry in retries] == [True]
    assert (tmp_path / "server.first.log").is_file()


def test_start_that_fails_twice_is_an_error(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHO_INITIALIZE", "die")
    retries: list[str] = []
    with pytest.raises(ServerStartError, match=r"ended with exit code 1: .*is not healthy"):
        EmbeddedServer(settings).start(on_retry=retries.append)
    assert len(retries) == 1


def test_busy_port_is_an_error_before_any_process_starts(settings: ServerSettings) -> None:
    with (
        socket.create_server(("127.0.0.1", settings.ports.grpc)),
        pytest.raises(ServerStartError, match=f"port {settings.ports.grpc}: taken by process"),
    ):
        EmbeddedServer(settings).start()
    assert not (settings.log_file or Path()).exists()


def test_dead_stub_is_noticed_though_the_server_stays_healthy(settings: ServerSettings) -> None:
    with EmbeddedServer(settings) as server:
        assert "is not healthy" in generate(settings, "die")
        with urlopen(f"{settings.http_url}/v2/health/ready") as response:
            assert response.status == 200
        assert "stub" in (server.failure() or "")
        started_s = time.monotonic()
        assert not server.stop()
        assert time.monotonic() - started_s < 2, "a dead stub is not waited for"


def test_dead_server_is_noticed(settings: ServerSettings) -> None:
    with EmbeddedServer(settings) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert "was ended by SIGKILL" in (server.failure() or "")


def test_engine_that_reports_its_end_is_noticed(settings: ServerSettings) -> None:
    with EmbeddedServer(settings) as server:
        generate(settings, "engine-down")
        assert server.failure(ask_engine=False) is None
        deadline_s = time.monotonic() + 10  # the server publishes metrics every few seconds
        while server.failure() is None and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert "octavo_engine_up is 0" in (server.failure() or "")


def test_two_servers_do_not_disturb_each_other(tmp_path: Path) -> None:
    first = make_settings(tmp_path, log_file=tmp_path / "first.log")
    with EmbeddedServer(first) as server:
        second = make_settings(tmp_path, log_file=tmp_path / "second.log")
        with EmbeddedServer(second):
            assert generate(second, "Hello") == "Hello [1, 1]"
        assert server.failure() is None
        assert generate(first, "Hello") == "Hello [1, 1]"


def _generate_in_vain(settings: ServerSettings, prompt: str) -> None:
    with suppress(OSError, HTTPException):
        generate(settings, prompt)
        pytest.fail("a request that was cut off got an answer")
