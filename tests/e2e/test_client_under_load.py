"""octavo_client against a server with one place and one seat in the queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from octavo_client import Client, RejectedError, RequestTimeoutError, Retry
from tests.e2e.target import SLOW, Target, bounded_repository, serving

PROMPT = "A place of its own"
SHORT: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 8}
LONG: dict[str, Any] = {**SHORT, "max_tokens": 1900}
# Triton may take up to half a second to hand over a request after a place has come free.
HANDOVER_S = 0.5


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("single")
    repository = bounded_repository(folder, max_queue_size=1)
    with serving(
        folder, "vllm", repository=repository, max_num_seqs=1, max_num_waiting=0, **SLOW
    ) as target:
        yield target


@pytest.fixture
def client(single: Target) -> Iterator[Client]:
    with Client(single.settings.grpc_url) as client:
        yield client
    single.wait_until_idle()


def test_client_is_rejected_at_once_when_the_queue_is_full(single: Target, client: Client) -> None:
    with client.stream(PROMPT, **LONG) as running:
        next(running)
        queued = threading.Thread(target=lambda: client.generate(PROMPT, **SHORT))
        queued.start()
        single.wait_until_queued(1)
        began_s = time.monotonic()
        with pytest.raises(RejectedError, match="maximum queue size"):
            client.generate(PROMPT, **SHORT)
        assert time.monotonic() - began_s < 0.5
        next(running)
    queued.join(10)
    assert not queued.is_alive()


def test_client_retries_a_rejection_until_there_is_room(single: Target) -> None:
    retries = Retry(attempts=60, backoff_s=0.1, max_backoff_s=0.1)
    running = single.send(PROMPT, max_tokens=1900)
    running.wait_for_first()
    queued = single.send(PROMPT, max_tokens=8)
    single.wait_until_queued(1)
    leaves = threading.Timer(0.6, running.cancel)
    leaves.start()
    with Client(single.settings.grpc_url, retries=retries) as patient:
        began_s = time.monotonic()
        assert patient.generate(PROMPT, **SHORT).usage.completion_tokens == 8
        assert time.monotonic() - began_s >= 0.6
    leaves.join()
    queued.result()
    running.wait()


def test_client_that_leaves_its_stream_frees_the_place(single: Target, client: Client) -> None:
    first_s: list[float] = []

    def wait_for_text() -> None:
        for _ in client.stream(PROMPT, **SHORT):
            first_s.append(time.monotonic())

    running = client.stream(PROMPT, **LONG)
    next(running)
    waiting = threading.Thread(target=wait_for_text)
    waiting.start()
    single.wait_until_queued(1)
    running.close()
    left_s = time.monotonic()
    waiting.join(10)
    assert first_s and first_s[0] - left_s < 0.15 + HANDOVER_S + 0.2


def test_client_times_out_in_the_queue(single: Target, client: Client) -> None:
    with client.stream(PROMPT, **LONG) as running:
        next(running)
        for timeout_s in (0.5, 1.0):
            began_s = time.monotonic()
            with pytest.raises(RequestTimeoutError):
                client.generate(PROMPT, timeout=timeout_s, **SHORT)
            assert timeout_s <= time.monotonic() - began_s < timeout_s + 0.6
            single.wait_until_queued(0)
        next(running)
    assert client.generate(PROMPT, **SHORT).usage.completion_tokens == 8
