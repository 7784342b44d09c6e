"""Many requests of all lengths, a fifth of them cancelled: nothing is lost, nothing stays."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import psutil
import pytest

from octavo.cli import processes
from tests.e2e.streams import Stream
from tests.e2e.target import Target, prompt_ids, serving

NUM_REQUESTS = 200
CANCELLED_RATIO = 0.2
NUM_CONCURRENT = 12
NUM_ROUNDS = 3  # the first one warms up: buffers and pools find their size
MAX_GROWTH_BYTES = 12 * 2**20


@pytest.fixture(scope="module", params=["vllm", "batched"])
def roomy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    with serving(tmp_path_factory.mktemp("soak"), request.param, max_num_seqs=8) as target:
        yield target


def resident_bytes(target: Target) -> int:
    """Of the server and its stub."""
    assert target.server.pid is not None
    pids = [target.server.pid, *processes.children(target.server.pid)]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def soak(target: Target, seed: int) -> None:
    """One round: every request ends as it must."""
    rng = random.Random(seed)
    under_way: deque[tuple[Stream, int, bool]] = deque()

    def end_first() -> None:
        stream, max_tokens, leaves = under_way.popleft()
        if leaves:
            stream.cancel()
        answer = stream.wait()
        if answer.code == "CANCELLED":
            assert leaves
            return
        assert answer.error is None
        assert len(answer.token_ids) == max_tokens and answer.num_finals == 1

    for number in range(NUM_REQUESTS):
        if len(under_way) == NUM_CONCURRENT:
            end_first()
        prompt = prompt_ids(rng.choice((1, 15, 16, 17, 40, 120, 300, 600)), seed=number)
        max_tokens = rng.choice((1, 2, 16, 33, 64))
        leaves = rng.random() < CANCELLED_RATIO
        # Who leaves would stay longest.
        stream = target.send(prompt, max_tokens=500 if leaves else max_tokens)
        under_way.append((stream, 500 if leaves else max_tokens, leaves))
    while under_way:
        end_first()


@pytest.mark.slow
def test_soak_loses_no_request_no_block_and_no_memory(roomy: Target) -> None:
    before = roomy.settled_metrics()
    sizes_bytes = []
    for seed in range(NUM_ROUNDS):
        soak(roomy, seed)
        roomy.wait_until_idle()
        sizes_bytes.append(resident_bytes(roomy))
    after = roomy.settled_metrics()

    def ended(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    cancelled = ended("octavo_requests_total", finish_reason="cancelled")
    cancelled += ended("nv_inference_request_failure", reason="CANCELED")  # in Triton's queue
    length = ended("octavo_requests_total", finish_reason="length")
    assert length + cancelled == NUM_ROUNDS * NUM_REQUESTS
    assert cancelled > 0.1 * NUM_ROUNDS * NUM_REQUESTS
    assert ended("octavo_requests_total") == ended("octavo_e2e_request_latency_seconds_count")
    growth_bytes = sizes_bytes[-1] - sizes_bytes[0]
    assert growth_bytes < MAX_GROWTH_BYTES, sizes_bytes
    assert roomy.server.failure() is None
