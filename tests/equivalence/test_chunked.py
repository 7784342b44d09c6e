"""Chunked prefill = whole."""

import pytest

from equivalences import Case
from factories import generate_checked


@pytest.mark.parametrize("chunk", [1, 3, 7, 16])
def test_chunked_prefill_equals_whole(case: Case, chunk: int) -> None:
    engine = case.engine(max_num_batched_tokens=chunk, max_num_seqs=1)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    chunks = sum(-(-len(prompt) // chunk) for prompt in case.prompts)
    assert engine.scheduler.counters.prefill_chunks == chunks > len(case.prompts)


@pytest.mark.parametrize("budget", [5, 11, 32])
def test_chunks_beside_decodes_equal_whole(case: Case, budget: int) -> None:
    engine = case.engine(max_num_batched_tokens=budget, max_num_seqs=min(budget, 8))
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert engine.scheduler.counters.prefill_chunks > len(case.prompts)
    assert engine.stats.busy_s["mixed"] > 0
