"""What a stop, a dead process and a dead engine mean for those who are being served."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.e2e.target import REPOSITORY, SLOW, Target, prompt_ids, serving, wait_until

# tritonserver looks once a second whether it may leave, and needs a moment for itself.
LEAVING_S = 3.0
FATAL_PROMPT_TOKENS = 77  # of faulty_model.py


def stop_aside(target: Target) -> Callable[[], tuple[bool, float]]:
    """Begins a stop; the result tells whether it was clean, and what time it took."""
    outcome: list[tuple[bool, float]] = []

    def stop() -> None:
        began_s = time.monotonic()
        clean = target.server.stop()
        outcome.append((clean, time.monotonic() - began_s))

    thread = threading.Thread(target=stop)
    thread.start()

    def result() -> tuple[bool, float]:
        thread.join(60)
        return outcome[0]

    return result


def test_stop_lets_running_streams_end_and_refuses_new_ones(tmp_path: Path) -> None:
    with serving(tmp_path, "vllm", drain_timeout_s=20, **SLOW) as target:
        streams = [target.send(prompt_ids(8, seed), max_tokens=300) for seed in range(3)]
        for stream in streams:
            stream.wait_for_first()
        stopped = stop_aside(target)
        time.sleep(0.3)
        assert not any(stream.is_done for stream in streams)
        with pytest.raises(grpc.RpcError, match="Server exiting"):
            target.send(prompt_ids(8), max_tokens=2)
        assert [len(stream.result().token_ids) for stream in streams] == [300] * 3
        last_end_s = max(stream.answer.e2e_s for stream in streams)
        clean, took_s = stopped()
    assert clean and took_s < last_end_s + LEAVING_S


def test_stop_is_bounded_when_streams_are_longer_and_the_queue_is_full(tmp_path: Path) -> None:
    with serving(
        tmp_path, "vllm", drain_timeout_s=0, max_num_seqs=1, max_num_waiting=0, **SLOW
    ) as target:
        running = target.send(prompt_ids(8), max_tokens=2000)
        running.wait_for_first()
        queued = [target.send(prompt_ids(8), max_tokens=2000) for _ in range(4)]
        target.wait_until_queued(4)
        bound_s = target.settings.exit_timeout_s + LEAVING_S
        clean, took_s = stop_aside(target)()
        assert not clean and took_s < bound_s
        for stream in (running, *queued):
            answer = stream.wait(timeout_s=2)
            assert answer.error is not None and len(answer.token_ids) < 2000


def test_dead_stub_is_told_and_ends_everything_with_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, "vllm", **SLOW) as target:
        running = target.send(prompt_ids(8), max_tokens=2000)
        running.wait_for_first()
        stub = target.stub()
        os.kill(stub, signal.SIGKILL)
        wait_until(lambda: target.server.failure(ask_engine=False) is not None, "noticed", 1)
        assert f"stub {stub}" in (target.server.failure() or "")
        refused = target.send(prompt_ids(8), max_tokens=2).wait(timeout_s=5)
        # The 2.51 server says so, and has been seen to end at once by itself instead.
        assert re.search("is not healthy|Socket closed", refused.error or "")
        began_s = time.monotonic()
        assert not target.server.stop()
        assert time.monotonic() - began_s < 2
        answer = running.wait(timeout_s=2)
        assert answer.error is not None and len(answer.token_ids) < 2000


def test_dead_engine_is_told_to_everyone(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("faulty_model.py"), repository / "llm" / "1" / "model.py")
    with serving(
        tmp_path, "vllm", repository=repository, max_num_seqs=2, max_num_waiting=0, **SLOW
    ) as target:
        running = target.send(prompt_ids(8), max_tokens=2000)
        running.wait_for_first()
        assert target.server.failure() is None
        fatal = target.send(prompt_ids(FATAL_PROMPT_TOKENS), max_tokens=2)
        queued = target.send(prompt_ids(8), max_tokens=2000)
        for stream in (running, fatal):
            answer = stream.wait(timeout_s=5)
            assert answer.error == "the engine has failed: RuntimeError: injected"
        for refused in (queued, target.send(prompt_ids(8), max_tokens=2)):
            answer = refused.wait(timeout_s=5)
            assert "the engine has failed" in (answer.error or "")
        refused_by_http = target.post("generate", {"text_input": "a"})
        assert refused_by_http.is_error and "the engine has failed" in refused_by_http.text
        wait_until(lambda: target.metrics().value("octavo_engine_up") == 0, "engine_up 0", 3)
        assert "octavo_engine_up is 0" in (target.server.failure() or "")
        metrics = target.settled_metrics()
        assert metrics.value("octavo_requests_total", finish_reason="error") >= 2
        assert metrics.value("octavo_kv_blocks_used") == 0
        began_s = time.monotonic()
        target.server.stop()
        assert time.monotonic() - began_s < target.settings.exit_timeout_s
