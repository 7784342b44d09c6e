"""What /metrics shows after a scenario whose numbers are known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.streams import Answer
from tests.e2e.target import Metrics, Target, prompt_ids, wait_until

STEP_TOKENS = 256  # max_num_batched_tokens of engine.toml
HISTOGRAMS = (
    "octavo_request_queue_time_seconds",
    "octavo_time_to_first_token_seconds",
    "octavo_inter_token_latency_seconds",
    "octavo_time_per_output_token_seconds",
    "octavo_e2e_request_latency_seconds",
)
GAUGES = (
    "octavo_num_requests_running",
    "octavo_num_requests_waiting",
    "octavo_kv_blocks_used",
    "octavo_kv_cache_usage_ratio",
    "octavo_kv_fragmentation_ratio",
    "nv_inference_pending_request_count",
)

Increase = Callable[..., float]


@pytest.fixture
def increase(target: Target) -> Iterator[Increase]:
    """By how much a counter has grown since the test began, once metrics are up to date."""
    before = target.settled_metrics()
    after: list[Metrics] = []

    def since(name: str, **labels: str) -> float:
        if not after:
            after.append(target.settled_metrics())
        return after[0].value(name, **labels) - before.value(name, **labels)

    yield since


def gauges(target: Target) -> dict[str, float]:
    metrics = target.settled_metrics()
    return {name: metrics.value(name) for name in GAUGES}


def num_texts(answers: list[Answer]) -> int:
    return sum(bool(chunk.text) for answer in answers for chunk in answer.chunks)


def test_counters_are_exact_after_requests_one_by_one(target: Target, increase: Increase) -> None:
    shape = {8: 5, 300: 7, 20: 1, 513: 3}  # prompt tokens: output tokens
    answers = [target.generate(prompt_ids(n, seed=n), max_tokens=m) for n, m in shape.items()]
    whole = target.generate(prompt_ids(30), max_tokens=12)
    stop = whole.token_ids[4]
    stopped = target.generate(prompt_ids(30), max_tokens=12, stop_token_ids=[stop])
    num_stopped = len(stopped.token_ids)
    assert "got an empty text" in (target.send("").wait().error or "")
    answers += [whole, stopped]

    assert increase("octavo_requests_total", finish_reason="length") == 5
    assert increase("octavo_requests_total", finish_reason="stop") == 1
    assert increase("octavo_requests_total") == 6
    assert increase("octavo_invalid_requests_total") == 1
    assert increase("octavo_good_requests_total") == 6
    num_outputs = sum(shape.values()) + 12 + num_stopped
    assert increase("octavo_generation_tokens_total") == num_outputs
    assert increase("octavo_good_tokens_total") == num_outputs
    assert increase("octavo_prompt_tokens_total") == sum(shape) + 30 + 30
    chunks = 1 + 2 + 1 + 3 + 1 + 1
    assert increase("octavo_prefill_chunks_total") == chunks
    assert increase("octavo_steps_total") == chunks + num_outputs - len(answers)
    assert increase("octavo_preemptions_total") == 0
    assert increase("nv_inference_count") == 7
    assert increase("nv_inference_request_success") == 7

    counts = {name: increase(f"{name}_count") for name in HISTOGRAMS}
    assert counts["octavo_request_queue_time_seconds"] == 6
    assert counts["octavo_e2e_request_latency_seconds"] == 6
    assert counts["octavo_time_to_first_token_seconds"] == 6
    assert counts["octavo_time_per_output_token_seconds"] == 5
    assert counts["octavo_inter_token_latency_seconds"] == num_texts(answers) - 6
    for name in HISTOGRAMS:
        assert increase(f"{name}_bucket", le="+Inf") == counts[name]
        assert increase(f"{name}_bucket", le="0.001") <= increase(f"{name}_bucket", le="1")
    e2e_s = increase("octavo_e2e_request_latency_seconds_sum")
    assert 0 < e2e_s <= sum(answer.e2e_s for answer in answers)
    assert 0 < increase("octavo_busy_seconds_total") <= e2e_s
    assert increase("octavo_time_to_first_token_seconds_sum") < e2e_s


def test_counters_are_exact_after_concurrent_requests(target: Target, increase: Increase) -> None:
    shape = [(5 + 37 * i, 3 + 5 * i) for i in range(12)]
    streams = [target.send(prompt_ids(n, seed=n), max_tokens=m) for n, m in shape]
    answers = [stream.result() for stream in streams]
    num_outputs = sum(m for _, m in shape)
    assert sum(len(answer.token_ids) for answer in answers) == num_outputs
    assert increase("octavo_requests_total", finish_reason="length") == 12
    assert increase("octavo_prompt_tokens_total") == sum(n for n, _ in shape)
    assert increase("octavo_generation_tokens_total") == num_outputs
    assert increase("octavo_e2e_request_latency_seconds_count") == 12
    assert increase("octavo_inter_token_latency_seconds_count") == num_texts(answers) - 12
    assert set(gauges(target).values()) == {0}


def test_requests_that_end_early_are_counted_by_their_reason(
    target: Target, increase: Increase
) -> None:
    cancelled = target.send(prompt_ids(8), max_tokens=2000)
    cancelled.wait_for_first()
    late = target.send(prompt_ids(9), max_tokens=2000, deadline_ms=300)
    assert "deadline_ms = 300" in (late.wait().error or "")
    cancelled.cancel()
    cancelled.wait()
    wait_until(lambda: target.metrics().value("octavo_num_requests_running") == 0, "both at an end")
    assert increase("octavo_requests_total", finish_reason="cancelled") == 1
    assert increase("octavo_requests_total", finish_reason="deadline") == 1
    assert increase("octavo_requests_total") == 2
    assert increase("octavo_good_requests_total") == 0
    assert increase("octavo_prompt_tokens_total") == 17
    assert set(gauges(target).values()) == {0}


def test_gauges_show_what_runs_and_return_to_zero(target: Target) -> None:
    block_size = 16
    streams = [target.send(prompt_ids(160, seed), max_tokens=1800) for seed in range(3)]
    for stream in streams:
        stream.wait_for_first()
    during = gauges(target)
    assert during["octavo_num_requests_running"] == 3
    num_tokens = [160 + len(stream.answer.token_ids) for stream in streams]
    assert 3 * 160 / block_size < during["octavo_kv_blocks_used"]
    assert during["octavo_kv_blocks_used"] <= sum(-(-n // block_size) for n in num_tokens) + 3
    total = target.metrics().value("octavo_kv_blocks_total")
    assert during["octavo_kv_cache_usage_ratio"] == pytest.approx(
        during["octavo_kv_blocks_used"] / total
    )
    assert 0 <= during["octavo_kv_fragmentation_ratio"] < 3 * block_size / sum(num_tokens) + 0.05
    for stream in streams:
        stream.cancel()
    # Nothing runs any more that could bring the gauges up to date.
    assert set(gauges(target).values()) == {0}
    assert target.metrics().value("octavo_engine_up") == 1
