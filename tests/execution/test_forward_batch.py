"""ForwardBatch.from_plan by examples computed by hand."""

import pytest
import torch
from torch import Tensor

from factories import make_sequence
from octavo.execution.forward_batch import ForwardBatch
from octavo.scheduling.sequence import ScheduledSequence, StepPlan

CPU = torch.device("cpu")


def scheduled(
    token_ids: list[int], computed: int, num_tokens: int, block_table: list[int]
) -> ScheduledSequence:
    sequence = make_sequence(0)
    sequence.token_ids = token_ids
    sequence.num_computed_tokens = computed
    sequence.block_table = block_table
    return ScheduledSequence(sequence, num_tokens)


def test_from_plan_of_decodes_and_prefills() -> None:
    plan = StepPlan(
        decodes=[
            scheduled([10, 11, 12, 13, 14], 4, 1, [7, 2]),
            scheduled([20, 21], 1, 1, [5]),
        ],
        prefills=[
            scheduled([30, 31, 32, 33, 34, 35, 36, 37, 38, 39], 3, 4, [1, 6, 3]),  # a chunk
            scheduled([40, 41, 42], 0, 3, [4]),  # whole
        ],
    )
    batch = ForwardBatch.from_plan(plan, 4, CPU)
    assert batch.token_ids.tolist() == [14, 21, 33, 34, 35, 36, 40, 41, 42]
    assert batch.positions.tolist() == [4, 1, 3, 4, 5, 6, 0, 1, 2]
    assert batch.slot_mapping.tolist() == [8, 21, 7, 24, 25, 26, 16, 17, 18]
    assert batch.block_tables.tolist() == [[7, 2, 0], [5, 0, 0], [1, 6, 3], [4, 0, 0]]
    assert batch.query_start.tolist() == [0, 1, 2, 6, 9]
    assert batch.context_lens.tolist() == [5, 2, 7, 3]
    assert batch.sample_indices.tolist() == [0, 1, 8]
    assert batch.num_decodes == 2
    tensors = [value for name in ForwardBatch.__slots__ if name != "num_decodes"
               for value in [getattr(batch, name)]]  # fmt: skip
    assert all(isinstance(t, Tensor) and t.dtype == torch.int64 for t in tensors)


def test_blocks_that_were_given_back_are_not_in_the_tables() -> None:
    """A sequence whose window has left its first blocks has −1 for them."""
    plan = StepPlan(
        decodes=[scheduled([10] * 11, 10, 1, [-1, -1, 2])],
        prefills=[scheduled([20] * 9, 6, 3, [-1, 5, 3])],
    )
    batch = ForwardBatch.from_plan(plan, 4, CPU)
    assert batch.block_tables.tolist() == [[0, 0, 2], [0, 5, 3]]
    assert batch.slot_mapping.tolist() == [2 * 4 + 2, 5 * 4 + 2, 5 * 4 + 3, 3 * 4]


def test_a_token_without_a_block_is_a_fault() -> None:
    plan = StepPlan([], [scheduled([20] * 9, 3, 3, [-1, 5, 3])])
    with pytest.raises(AssertionError, match="given back"):
        ForwardBatch.from_plan(plan, 4, CPU)


def test_from_plan_samples_after_the_last_chunk() -> None:
    last = scheduled([30, 31, 32, 33, 34], 2, 3, [1, 0])
    batch = ForwardBatch.from_plan(StepPlan([], [last]), 4, CPU)
    assert batch.sample_indices.tolist() == [2]
    assert batch.slot_mapping.tolist() == [6, 7, 0]


def test_from_plan_without_samples() -> None:
    chunk = scheduled([30, 31, 32], 0, 2, [1])
    batch = ForwardBatch.from_plan(StepPlan([], [chunk]), 4, CPU)
    assert batch.sample_indices.tolist() == []
    assert batch.sample_indices.dtype == torch.int64


def test_from_plan_of_one_token_in_blocks_of_one() -> None:
    batch = ForwardBatch.from_plan(StepPlan([], [scheduled([9], 0, 1, [3])]), 1, CPU)
    assert (batch.token_ids.tolist(), batch.slot_mapping.tolist()) == ([9], [3])
    assert (batch.num_decodes, batch.sample_indices.tolist()) == (0, [0])
