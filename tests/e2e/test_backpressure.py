"""A full engine leaves requests in Triton's queue, with its bound, priorities and timeouts.

Flat form: two sequences run, one more is admitted, and each priority level queues three.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import pytest

from tests.e2e.streams import HttpStream, Stream
from tests.e2e.target import SLOW, Target, bounded_repository, prompt_ids, serving, wait_until

QUEUE_BOUND = 3
# Triton sweeps its queue for expired requests twice a second. The sweeps begin up to 0.5 s after
# the first request has come to an empty queue: a shorter timeout fires with the first of them.
SWEEP_S = 0.5
MARGIN_S = 0.1


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("narrow")
    repository = bounded_repository(folder, QUEUE_BOUND)
    with serving(
        folder, "vllm", repository=repository, max_num_seqs=2, max_num_waiting=1, **SLOW
    ) as target:
        yield target


@pytest.fixture(autouse=True)
def _ends_idle(narrow: Target) -> Iterator[None]:
    yield
    narrow.wait_until_idle()


@pytest.fixture
def running(narrow: Target) -> Iterator[list[HttpStream]]:
    """Every place of the engine is taken: two run for many seconds, a short third waits."""
    streams = [narrow.hold(prompt_ids(8, seed), max_tokens=2000) for seed in range(2)]
    for stream in streams:
        stream.wait_for_first()
    third = narrow.send(prompt_ids(8, 2), max_tokens=10)
    wait_until(
        lambda: narrow.metrics().value("octavo_num_requests_waiting") == 1, "a third one waiting"
    )
    yield streams
    release(*streams)
    third.result()


def release(*streams: HttpStream) -> None:
    for stream in streams:
        stream.leave()


def queue(target: Target, count: int, level: int = 2, max_tokens: int = 10) -> list[Stream]:
    """Sends so many requests and waits until they are queued."""
    before = target.num_queued()
    streams = [
        target.send(prompt_ids(8, seed), max_tokens=max_tokens, level=level)
        for seed in range(count)
    ]
    target.wait_until_queued(before + count)
    return streams


def test_queue_rejects_exactly_the_surplus_at_once(
    narrow: Target, running: list[HttpStream]
) -> None:
    burst = [narrow.send(prompt_ids(8, seed), max_tokens=10) for seed in range(7)]
    surplus = len(burst) - QUEUE_BOUND
    wait_until(lambda: sum(stream.is_done for stream in burst) == surplus, "the surplus answered")
    rejected = [stream.wait() for stream in burst if stream.is_done]
    assert all("Exceeds maximum queue size" in (answer.error or "") for answer in rejected)
    assert all(answer.e2e_s < 0.5 for answer in rejected)
    assert narrow.num_queued() == QUEUE_BOUND
    release(*running)
    served = [answer for stream in burst if not (answer := stream.wait()).error]
    assert [len(answer.token_ids) for answer in served] == [10] * QUEUE_BOUND


def test_queue_bound_counts_for_each_priority_level(
    narrow: Target, running: list[HttpStream]
) -> None:
    queued = []
    for level in (1, 2, 3):
        queued += queue(narrow, QUEUE_BOUND, level)
        surplus = narrow.send(prompt_ids(8), max_tokens=10, level=level).wait()
        assert "Exceeds maximum queue size" in (surplus.error or "")
    release(*running)
    assert [len(stream.result().token_ids) for stream in queued] == [10] * 3 * QUEUE_BOUND


def test_queued_request_times_out_within_its_time(
    narrow: Target, running: list[HttpStream]
) -> None:
    limits_s = (0.1, 0.5, 0.9)
    before_s = time.monotonic()
    queued = [narrow.send(prompt_ids(8), max_tokens=10, timeout_s=limit) for limit in limits_s]
    for limit_s, stream in zip(limits_s, queued, strict=True):
        answer = stream.wait()
        assert answer.error == "Request timeout expired"
        assert limit_s <= answer.e2e_s <= max(limit_s, SWEEP_S) + SWEEP_S + MARGIN_S
    assert all(stream.last_at_s > before_s for stream in running)


def test_admitted_request_is_not_ended_by_the_queue_timeout(narrow: Target) -> None:
    answer = narrow.send(prompt_ids(8), max_tokens=300, timeout_s=0.2).result()
    assert len(answer.token_ids) == 300 and answer.e2e_s > 0.2 + SWEEP_S


def test_priority_1_overtakes_what_is_queued(narrow: Target, running: list[HttpStream]) -> None:
    queued = {level: queue(narrow, 1, level, max_tokens=60)[0] for level in (3, 2, 1)}
    release(running[1])  # one place: they come one after the other
    first_s = {level: stream.result().chunks[0].at_s for level, stream in queued.items()}
    assert first_s[1] < first_s[2] < first_s[3]


def test_running_streams_are_undisturbed_by_a_full_queue(narrow: Target) -> None:
    alone = [narrow.generate(prompt_ids(8, seed), max_tokens=200) for seed in range(2)]
    longest_alone_s = max(statistics.quantiles(own.gaps_s, n=20)[-1] for own in alone)
    running = [narrow.send(prompt_ids(8, seed), max_tokens=200) for seed in range(3)]
    refused = 0
    while not any(stream.is_done for stream in running[:2]):
        burst = [narrow.send(prompt_ids(9), max_tokens=1, timeout_s=0.1) for _ in range(8)]
        refused += sum(stream.wait().error is not None for stream in burst)
    assert refused >= 8
    for stream, own in zip(running[:2], alone, strict=True):
        answer = stream.result()
        assert answer.token_ids == own.token_ids
        assert statistics.quantiles(answer.gaps_s, n=20)[-1] < 0.1 + 3 * longest_alone_s
    running[2].result()


def test_request_cancelled_in_the_queue_never_runs(
    narrow: Target, running: list[HttpStream]
) -> None:
    leaves, stays = queue(narrow, 2)
    leaves.cancel()
    assert leaves.wait().code == "CANCELLED"
    prompt_tokens = narrow.settled_metrics().value("octavo_prompt_tokens_total")
    release(*running)
    assert len(stays.result().token_ids) == 10
    narrow.wait_until_idle()
    after = narrow.settled_metrics().value("octavo_prompt_tokens_total")
    assert after - prompt_tokens == 2 * 8, "what was admitted, and the one that has stayed"


def test_queue_metrics_show_the_time_in_the_queue(
    narrow: Target, running: list[HttpStream]
) -> None:
    def queue_s() -> float:
        return narrow.metrics().value("nv_inference_queue_duration_us") / 1e6

    before_s = queue_s()
    [queued] = queue(narrow, 1)
    time.sleep(0.5)
    release(*running)
    answer = queued.result()
    narrow.wait_until_idle()
    assert 0.5 <= queue_s() - before_s <= answer.ttft_s
