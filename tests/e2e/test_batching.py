"""The batched form: Triton's dynamic batcher hands the model several requests at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.target import SLOW, Target, prompt_ids, serving, wait_until

NUM_PLACES = 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("small")
    with serving(folder, "batched", max_num_seqs=NUM_PLACES, max_num_waiting=0, **SLOW) as target:
        yield target


@pytest.fixture(autouse=True)
def _ends_idle(small: Target) -> Iterator[None]:
    yield
    small.wait_until_idle()


def test_requests_beyond_the_places_are_queued_batched_and_served(small: Target) -> None:
    before = small.settled_metrics()
    running = [small.send(prompt_ids(8, seed), max_tokens=250) for seed in range(NUM_PLACES)]
    for stream in running:
        stream.wait_for_first()
    queued = [small.send(prompt_ids(12, seed), max_tokens=10) for seed in range(12)]
    small.wait_until_queued(12)
    assert not any(stream.is_done for stream in running)
    assert [len(stream.result().token_ids) for stream in queued] == [10] * 12
    assert [len(stream.result().token_ids) for stream in running] == [250] * NUM_PLACES
    small.wait_until_idle()
    after = small.settled_metrics()
    count, executions = (
        after.value(name) - before.value(name)
        for name in ("nv_inference_count", "nv_inference_exec_count")
    )
    assert count == NUM_PLACES + 12
    assert executions <= NUM_PLACES + 2, "what was queued came in one or two batches"


def test_batch_of_several_keeps_each_ones_tokens(small: Target) -> None:
    prompts = [prompt_ids(10 + seed, seed) for seed in range(8)]
    alone = [small.generate(prompt, max_tokens=20).token_ids for prompt in prompts]
    running = [small.send(prompt_ids(8, seed), max_tokens=100) for seed in range(NUM_PLACES)]
    running[0].wait_for_first()
    together = [small.send(prompt, max_tokens=20) for prompt in prompts]
    assert [stream.result().token_ids for stream in together] == alone
    for stream in running:
        stream.result()


def test_bad_request_in_a_batch_is_answered_while_the_engine_is_full(small: Target) -> None:
    running = [small.send(prompt_ids(8, seed), max_tokens=2000) for seed in range(NUM_PLACES)]
    for stream in running:
        stream.wait_for_first()
    good = [small.send(prompt_ids(8), max_tokens=5) for _ in range(3)]
    bad = small.send(prompt_ids(8), max_tokens=0)
    small.wait_until_queued(4)
    running[0].cancel()  # one place: the batch is taken in hand, and all but one wait there
    assert (bad.wait().error or "").startswith("max_tokens: got 0")
    assert not any(stream.is_done for stream in running[1:])
    for stream in running[1:]:
        stream.cancel()
    assert [len(stream.result().token_ids) for stream in good] == [5] * 3


def test_request_in_hand_ends_in_time_when_it_is_late_or_cancelled(small: Target) -> None:
    def num_cancelled() -> float:
        return small.metrics().value("octavo_requests_total", finish_reason="cancelled")

    small.settled_metrics()
    before = num_cancelled()
    running = [small.send(prompt_ids(8, seed), max_tokens=2000) for seed in range(NUM_PLACES)]
    for stream in running:
        stream.wait_for_first()
    first = small.send(prompt_ids(8, 1), max_tokens=2000)
    small.wait_until_queued(1)  # each has a connection of its own, so order needs waiting
    second = small.send(prompt_ids(8, 2), max_tokens=3)
    cancelled = small.send(prompt_ids(8, 3), max_tokens=3)
    late = small.send(prompt_ids(8, 4), max_tokens=3, deadline_ms=1000)
    small.wait_until_queued(4)
    running[0].cancel()
    first.wait_for_first()  # the other three are in hand, and no place will be free
    small.wait_until_queued(0)
    in_hand_s = time.monotonic()
    cancelled.cancel()
    answer = late.wait()
    assert (answer.error or "").startswith("Request timeout expired")
    assert answer.e2e_s >= 1 and answer.ended_s - in_hand_s < 1 + 0.15
    wait_until(lambda: num_cancelled() == before + 2, "both cancelled ones counted")
    assert not second.is_done
    for stream in (*running, first):
        stream.cancel()
    assert len(second.result().token_ids) == 3
