"""Preempted = not: a sequence that lost its blocks is recomputed and goes on as if it had not."""

import pytest

from equivalences import POOLS, Case, pool_blocks
from factories import generate_checked


@pytest.mark.parametrize("share", POOLS)
def test_preempted_equals_alone(case: Case, share: float) -> None:
    engine = case.engine(num_blocks=pool_blocks(case, share))
    results = generate_checked(engine, case.prompts, case.params)
    assert engine.scheduler.counters.preemptions.total() > 0
    assert engine.scheduler.counters.recomputed_tokens.total() > 0
    case.assert_as_alone(results)
    assert [len(result.token_ids) for result in results] == [case.max_tokens] * len(results)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_preempted_in_chunks_equals_alone(case: Case, share: float) -> None:
    engine = case.engine(
        num_blocks=pool_blocks(case, share), max_num_batched_tokens=8, max_num_seqs=8
    )
    results = generate_checked(engine, case.prompts, case.params)
    assert engine.scheduler.counters.preemptions.total() > 0
    assert engine.scheduler.counters.prefill_chunks > 2 * len(case.prompts)
    case.assert_as_alone(results)


@pytest.mark.parametrize("block_size", [1, 16])
def test_preempted_equals_alone_with_other_blocks(case: Case, block_size: int) -> None:
    engine = case.engine(num_blocks=pool_blocks(case, 0.2, block_size), block_size=block_size)
    results = generate_checked(engine, case.prompts, case.params)
    assert engine.scheduler.counters.preemptions.total() > 0
    case.assert_as_alone(results)


def test_preempted_while_others_join_equals_alone(case: Case) -> None:
    engine = case.engine(num_blocks=pool_blocks(case, 0.3))
    joins = [4 * index for index in range(len(case.prompts))]
    results = generate_checked(engine, case.prompts, case.params, joins)
    assert engine.scheduler.counters.preemptions.total() > 0
    case.assert_as_alone(results)
