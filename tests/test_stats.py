"""What is counted, in closed form."""

import math
import random
import threading
import time
from pathlib import Path

import pytest

from factories import (
    Recorder,
    generate_checked,
    greedy,
    make_engine,
    random_prompts,
    run_to_end,
    step_checked,
    submit,
)
from octavo.accounts import MAX_TENANTS, OTHER_TENANTS
from octavo.gauges import EngineGauges
from octavo.generation import GenerationRequest
from octavo.stats import (
    LATENCY_BUCKETS_S,
    Histogram,
    RequestStats,
    SLOName,
)

GOOD: dict[SLOName, bool] = {"ttft": True, "tpot": True}


def test_histogram_counts_up_to_and_with_each_bound() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.5, 100.0):
        histogram.observe(value)
    assert histogram.cumulative() == [2, 4, 6, 8]
    assert (histogram.count, histogram.sum) == (8, 116.5)


def test_histogram_is_empty_at_first() -> None:
    histogram = Histogram()
    assert histogram.cumulative() == [0] * (len(LATENCY_BUCKETS_S) + 1)
    assert (histogram.count, histogram.sum) == (0, 0.0)


def test_histogram_agrees_with_a_count() -> None:
    chance = random.Random(0)
    values = [chance.choice([*LATENCY_BUCKETS_S, 10 ** chance.uniform(-4, 3)]) for _ in range(500)]
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    expected = [sum(v <= bound for v in values) for bound in (*LATENCY_BUCKETS_S, math.inf)]
    assert histogram.cumulative() == expected
    assert histogram.sum == pytest.approx(math.fsum(values))


def test_latency_buckets_rise_from_a_millisecond() -> None:
    assert list(LATENCY_BUCKETS_S) == sorted(set(LATENCY_BUCKETS_S))
    assert LATENCY_BUCKETS_S[0] == 0.001


def test_request_stats() -> None:
    stats = RequestStats()
    stats.count_invalid()
    stats.observe_output(0.4, is_first=True)
    stats.observe_output(0.02, is_first=False)
    stats.observe_output(0.03, is_first=False)
    stats.observe_finish("stop", "", 10, 3, 0.45, 0.025, GOOD)
    stats.observe_finish("length", "acme", 20, 1, 0.1, None, {"ttft": True})
    stats.observe_finish("stop", "acme", 30, 4, 9.0, 3.0, {"ttft": True, "tpot": False})
    stats.observe_finish("error", "", 5, 2, 0.1, 0.01, None)
    assert stats.tenants == {"": (15, 5), "acme": (50, 5)}
    assert dict(stats.finished) == {"stop": 2, "length": 1, "error": 1}
    assert stats.slo_requests == {
        ("ttft", True): 3, ("ttft", False): 0, ("tpot", True): 1, ("tpot", False): 1,
    }  # fmt: skip
    assert (stats.invalid, stats.good_requests, stats.good_tokens) == (1, 2, 4)
    counts = [h.count for h in (stats.ttft_s, stats.itl_s, stats.tpot_s, stats.e2e_s)]
    assert counts == [1, 2, 3, 4]
    assert stats.itl_s.sum == pytest.approx(0.05)
    assert stats.e2e_s.sum == pytest.approx(9.65)


def test_request_stats_name_a_bounded_number_of_tenants() -> None:
    stats = RequestStats()
    for number in range(MAX_TENANTS + 5):
        stats.observe_finish("stop", f"t{number}", 1, 2, 1.0, 0.1, GOOD)
    stats.observe_finish("stop", "t0", 1, 2, 1.0, 0.1, GOOD)
    assert len(stats.tenants) == MAX_TENANTS + 1
    assert stats.tenants["t0"] == (2, 4)
    assert stats.tenants[OTHER_TENANTS] == (5, 10)


def test_request_stats_lose_nothing_between_threads() -> None:
    stats = RequestStats()

    def write() -> None:
        for _ in range(2000):
            stats.count_invalid()
            stats.observe_output(0.01, is_first=False)
            stats.observe_finish("stop", "", 1, 2, 1.0, 0.1, GOOD)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert stats.invalid == stats.finished["stop"] == stats.itl_s.count == 8000
    assert stats.good_tokens == 16_000


def test_engine_counts_tokens_steps_and_phases(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100, max_num_batched_tokens=32)
    # 3 steps of prompt, 5 more tokens; the other's prompt joins in the sixth step.
    first = submit(engine, [5] * 70, greedy(6))
    for _ in range(5):
        step_checked(engine)
    assert len(first.token_ids) == 3
    submit(engine, [6] * 10, greedy(2))
    run_to_end(engine)
    stats = engine.stats
    assert (stats.prompt_tokens, stats.generation_tokens, stats.steps) == (80, 8, 8)
    assert stats.queue_time_s.count == 2
    assert all(seconds > 0 for seconds in stats.busy_s.values())
    assert engine.scheduler.counters.prefill_chunks == 4


@pytest.mark.parametrize("budget", [8, 64])
def test_engine_counts_a_preempted_request_once(toy_folder: Path, budget: int) -> None:
    prompts = random_prompts([40, 30, 20, 10, 25])
    engine = make_engine(
        toy_folder, num_blocks=24, max_model_len=96, max_num_seqs=5, max_num_batched_tokens=budget
    )
    generate_checked(engine, prompts, greedy(30))
    assert engine.scheduler.counters.preemptions.total() > 0
    assert engine.stats.prompt_tokens == sum(map(len, prompts))
    assert engine.stats.generation_tokens == 30 * len(prompts)
    assert engine.stats.queue_time_s.count == len(prompts)


def test_queue_time_counts_from_arrival(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100)
    recorder = Recorder()
    engine.submit(GenerationRequest([5], greedy(1), recorder, time.monotonic() - 40))
    run_to_end(engine)
    assert 40 <= engine.stats.queue_time_s.sum < 70


def test_busy_time_is_inside_of_the_clocks(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100)
    began_s = time.perf_counter()
    generate_checked(engine, random_prompts([9, 8]), greedy(9))
    elapsed_s = time.perf_counter() - began_s
    assert 0 < sum(engine.stats.busy_s.values()) <= elapsed_s
    assert engine.stats.busy_s["mixed"] == 0


def test_gauges_follow_each_step(toy_folder: Path) -> None:
    engine = make_engine(
        toy_folder, num_blocks=50, max_model_len=100, max_num_seqs=2, max_num_batched_tokens=16
    )
    assert engine.gauges == EngineGauges(total_blocks=50)
    for token in (5, 6, 7):
        submit(engine, [token] * 10, greedy(3))
    step_checked(engine)
    # 10 and 6 tokens are computed; both have the 3 blocks of their whole prompt.
    first = engine.gauges
    assert first.longest_wait_s > 0
    assert first == EngineGauges(2, 1, 6, 0, 50, first.longest_wait_s, 8 / 24)
    step_checked(engine)
    second = engine.gauges
    assert second.longest_wait_s > first.longest_wait_s
    assert second == EngineGauges(2, 1, 6, 0, 50, second.longest_wait_s, 3 / 24)
    run_to_end(engine)
    assert engine.gauges == EngineGauges(cached_blocks=9, total_blocks=50)


def test_gauges_are_zero_after_a_cancel(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=50)
    recorder = submit(engine, [5] * 10, greedy(30))
    step_checked(engine)
    assert engine.gauges.used_blocks == 3
    engine.cancel(recorder.request_id)
    assert not step_checked(engine)
    assert engine.gauges == EngineGauges(cached_blocks=2, total_blocks=50)
