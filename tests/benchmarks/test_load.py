"""A load's record says what the engine did."""

import json
import weakref
from dataclasses import asdict
from pathlib import Path

import pytest

from factories import make_engine, random_prompts
from octavo.benchmarks.load import run_load
from octavo.benchmarks.records import LoadRecord
from octavo.errors import InvalidRequestError

BLOCK = 4


def test_requests_are_recorded_in_their_order(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    load = run_load(engine, random_prompts([9, 5, 30]), 6)
    assert [request.output_tokens for request in load.requests] == [6, 6, 6]
    assert load.prefill_tokens == 9 + 5 + 30 and load.hit_tokens == 0
    assert load.peak_running == 3
    for request in load.requests:
        assert 0 < request.ttft_s < request.e2e_s <= load.duration_s
        assert 0 < request.longest_gap_s <= request.e2e_s - request.ttft_s
    assert load.output_tps == 18 / load.duration_s


def test_memory_at_the_peak(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    slot_bytes = engine.runner.kv_cache.num_bytes // (64 * BLOCK)
    load = run_load(engine, random_prompts([8]), 4)
    # After the step before the last one: 8 of the prompt and 2 more are computed, in 3 blocks.
    assert load.peak_reserved_bytes == 3 * BLOCK * slot_bytes
    assert load.peak_filled_bytes == 10 * slot_bytes


def test_what_is_found_is_not_computed(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    prompts = random_prompts([17])
    run_load(engine, prompts, 2)
    warm = run_load(engine, prompts * 2, 2)
    assert warm.hit_tokens == 32 and warm.prefill_tokens == 2
    assert warm.counted("prefix_hit_tokens") == 32  # of this load alone


def test_recomputed_tokens_count_as_prefill(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=8, enable_prefix_caching=False)
    load = run_load(engine, random_prompts([10, 10]), 15)
    assert load.counted("preemptions") > 0
    assert load.counted("recomputed_tokens") > 0
    assert load.prefill_tokens > 20


def test_a_record_goes_through_json_and_back(toy_folder: Path) -> None:
    load = run_load(make_engine(toy_folder, num_blocks=32), random_prompts([5, 6]), 3)
    assert LoadRecord.from_json(json.loads(json.dumps(asdict(load)))) == load


def test_too_long_a_request_is_refused(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        run_load(engine, random_prompts([250]), 10)


def test_an_engine_that_was_measured_goes_with_its_last_name(toy_folder: Path) -> None:
    """At once: the next one's weights must find the memory free."""
    engine = make_engine(toy_folder, num_blocks=32)
    run_load(engine, random_prompts([5]), 3)
    runner = weakref.ref(engine.runner)
    del engine
    assert runner() is None
