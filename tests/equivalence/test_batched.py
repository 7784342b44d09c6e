"""Batched = alone, whether the requests come at once or while others decode."""

import pytest

from equivalences import Case
from factories import generate_checked


@pytest.mark.parametrize("max_num_seqs", [2, 5, 32])
def test_batched_equals_alone(case: Case, max_num_seqs: int) -> None:
    engine = case.engine(max_num_seqs=max_num_seqs)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    waves = -(-len(case.prompts) // max_num_seqs)
    assert engine.stats.steps <= waves * case.max_tokens + len(case.prompts)
    assert engine.scheduler.counters.preemptions.total() == 0


@pytest.mark.parametrize("every", [1, 5])
def test_joining_while_others_decode_equals_alone(case: Case, every: int) -> None:
    engine = case.engine()
    joins = [every * index for index in range(len(case.prompts))]
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params, joins))
    assert engine.stats.busy_s["mixed"] > 0


def test_joining_a_full_engine_equals_alone(case: Case) -> None:
    engine = case.engine(max_num_seqs=2, max_num_batched_tokens=8)
    joins = sorted(7 * (index // 2) for index in range(len(case.prompts)))
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params, joins))
    assert engine.stats.busy_s["mixed"] > 0
    assert engine.scheduler.counters.prefill_chunks > len(case.prompts)


def test_order_of_arrival_changes_nothing(case: Case) -> None:
    engine = case.engine(max_num_seqs=4)
    results = generate_checked(engine, case.prompts[::-1], case.params)
    case.assert_as_alone(results[::-1])


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_block_size_changes_nothing(case: Case, block_size: int) -> None:
    engine = case.engine(block_size=block_size, num_blocks=1600 // block_size)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert engine.runner.kv_cache.block_size == block_size


def test_blocks_that_others_left_change_nothing(case: Case) -> None:
    engine = case.engine(num_blocks=-(-case.longest // 4))
    for _ in range(2):
        for prompt, expected in zip(case.prompts, case.alone, strict=True):
            case.compare(generate_checked(engine, [prompt], case.params)[0], expected)
