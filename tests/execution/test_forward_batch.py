"""ForwardBatch.from_plan by examples computed by hand, and BatchBuilder's batches against a plain
rebuild at each step of a scheduler's life."""

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from factories import all_scheduled, make_sequence
from octavo.execution.forward_batch import BatchBuilder, ForwardBatch
from octavo.scheduling.block_allocator import NO_BLOCK
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import ScheduledSequence, Sequence, StepPlan


def decode(token_ids: list[int], block_table: list[int]) -> Sequence:
    return chunk(token_ids, len(token_ids) - 1, 1, block_table).sequence


def chunk(
    token_ids: list[int], computed: int, num_tokens: int, block_table: list[int]
) -> ScheduledSequence:
    sequence = make_sequence(0)
    sequence.token_ids = token_ids
    sequence.num_computed_tokens = computed
    sequence.block_table = block_table
    return ScheduledSequence(sequence, num_tokens)


def batch_of(plan: StepPlan, block_size: int = 4) -> ForwardBatch:
    return ForwardBatch.from_plan(plan, block_size)


def test_from_plan_of_decodes_and_prefills() -> None:
    plan = StepPlan(
        decodes=[
            decode([10, 11, 12, 13, 14], [7, 2]),
            decode([20, 21], [5]),
        ],
        prefills=[
            chunk([30, 31, 32, 33, 34, 35, 36, 37, 38, 39], 3, 4, [1, 6, 3]),  # a chunk
            chunk([40, 41, 42], 0, 3, [4]),  # whole
        ],
    )
    batch = batch_of(plan)
    assert batch.token_ids.tolist() == [14, 21, 33, 34, 35, 36, 40, 41, 42]
    assert batch.positions.tolist() == [4, 1, 3, 4, 5, 6, 0, 1, 2]
    assert batch.slot_mapping.tolist() == [8, 21, 7, 24, 25, 26, 16, 17, 18]
    assert batch.block_tables[:, :3].tolist() == [[7, 2, 0], [5, 0, 0], [1, 6, 3], [4, 0, 0]]
    assert not batch.block_tables[:, 3:].any()
    assert batch.query_start.tolist() == [0, 1, 2, 6, 9]
    assert batch.context_lens.tolist() == [5, 2, 7, 3]
    assert batch.sample_indices.tolist() == [0, 1, 8]
    assert (batch.num_decodes, batch.max_query_len) == (2, 4)
    values = [getattr(batch, name) for name in ForwardBatch.__slots__]
    tensors = [value for value in values if isinstance(value, Tensor)]
    assert len(tensors) == 7 and all(t.dtype == torch.int64 for t in tensors)
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in tensors)


def test_blocks_that_were_given_back_are_not_in_the_tables() -> None:
    """A sequence whose window has left its first blocks has −1 for them."""
    plan = StepPlan(
        decodes=[decode([10] * 11, [-1, -1, 2])],
        prefills=[chunk([20] * 9, 6, 3, [-1, 5, 3])],
    )
    batch = batch_of(plan)
    assert batch.block_tables[:, :3].tolist() == [[0, 0, 2], [0, 5, 3]]
    assert batch.slot_mapping.tolist() == [2 * 4 + 2, 5 * 4 + 2, 5 * 4 + 3, 3 * 4]


def test_a_token_without_a_block_is_a_fault() -> None:
    plan = StepPlan([], [chunk([20] * 9, 3, 3, [-1, 5, 3])])
    with pytest.raises(AssertionError, match="given back"):
        batch_of(plan)


def test_from_plan_samples_after_the_last_chunk() -> None:
    last = chunk([30, 31, 32, 33, 34], 2, 3, [1, 0])
    batch = batch_of(StepPlan([], [last]))
    assert batch.sample_indices.tolist() == [2]
    assert batch.slot_mapping.tolist() == [6, 7, 0]


def test_from_plan_without_samples() -> None:
    batch = batch_of(StepPlan([], [chunk([30, 31, 32], 0, 2, [1])]))
    assert batch.sample_indices.tolist() == []
    assert batch.sample_indices.dtype == torch.int64


def test_from_plan_of_one_token_in_blocks_of_one() -> None:
    batch = batch_of(StepPlan([], [chunk([9], 0, 1, [3])]), block_size=1)
    assert (batch.token_ids.tolist(), batch.slot_mapping.tolist()) == ([9], [3])
    assert (batch.num_decodes, batch.sample_indices.tolist()) == (0, [0])


def rebuilt(plan: StepPlan, block_size: int) -> dict[str, Any]:
    """The batch of a plan, token by token; tables with their own length."""
    fields: dict[str, Any] = {name: [] for name in ForwardBatch.__slots__}
    fields["query_start"], fields["num_decodes"] = [0], len(plan.decodes)
    fields["max_query_len"] = max(scheduled.num_tokens for scheduled in all_scheduled(plan))
    for scheduled in all_scheduled(plan):
        sequence, computed = scheduled.sequence, scheduled.sequence.num_computed_tokens
        for position in range(computed, computed + scheduled.num_tokens):
            block = sequence.block_table[position // block_size]
            fields["token_ids"].append(sequence.token_ids[position])
            fields["positions"].append(position)
            fields["slot_mapping"].append(block * block_size + position % block_size)
        num_tokens = len(fields["token_ids"])
        fields["sample_indices"] += range(num_tokens - scheduled.num_logits, num_tokens)
        fields["block_tables"].append([max(block, 0) for block in sequence.block_table])
        fields["query_start"].append(num_tokens)
        fields["context_lens"].append(computed + scheduled.num_tokens)
    return fields


def assert_is_rebuilt(batch: ForwardBatch, expected: dict[str, Any]) -> None:
    for name, values in expected.items():
        got = getattr(batch, name)
        if name == "block_tables":
            assert got.is_contiguous() and len(got) == len(values)
            for row, table in zip(got.tolist(), values, strict=True):
                assert row == table + [0] * (len(row) - len(table))
        else:
            assert (got.tolist() if isinstance(got, Tensor) else got) == values, name


def test_a_batch_in_place_follows_tables_that_change_in_any_way() -> None:
    sequences = [decode([10] * 6, [7, 2]), decode([20] * 8, [5, 3]), decode([30] * 3, [9])]
    builder, plan = BatchBuilder(4), StepPlan(sequences, [])
    batch = builder.build(plan)
    assert_is_rebuilt(batch, rebuilt(plan, 4))

    def go_on() -> None:
        for sequence in sequences:
            sequence.num_computed_tokens += 1
            sequence.token_ids.append(40 + len(sequence.token_ids))

    go_on()
    sequences[0].block_table[-1] = 8  # a copy of its own in place of a shared one
    sequences[1].block_table += [4]
    assert builder.build(plan) is batch
    assert_is_rebuilt(batch, rebuilt(plan, 4))
    go_on()
    sequences[1].block_table[0] = NO_BLOCK
    sequences[2].block_table = [1, 6]  # as after a preemption
    assert builder.build(plan) is batch
    assert_is_rebuilt(batch, rebuilt(plan, 4))
    go_on()
    sequences[1].block_table[2] = NO_BLOCK
    with pytest.raises(AssertionError, match="given back"):
        builder.build(plan)


def test_a_batch_is_new_for_a_plan_that_is_not_the_next() -> None:
    sequences = [decode([10] * 6, [7, 2, 3]), decode([20] * 8, [5, 3])]
    builder, plan = BatchBuilder(4), StepPlan(sequences, [])
    first = builder.build(plan)
    again = builder.build(plan)  # no token further
    assert again is not first
    for next_plan in (
        StepPlan(sequences[::-1], []),
        StepPlan(sequences[:1], []),
        StepPlan(sequences, [chunk([30] * 9, 4, 3, [1, 6])]),
    ):
        sequences[0].num_computed_tokens += 1
        sequences[0].token_ids.append(11)
        sequences[1].num_computed_tokens -= 1
        sequences[1].token_ids.pop()
        assert_is_rebuilt(builder.build(next_plan), rebuilt(next_plan, 4))


class Life:
    """A scheduler whose sequences join, fork, are preempted, cancelled and end, all by chance."""

    def __init__(self, seed: int, window: int | None) -> None:
        self.chance = Random(seed)
        self.block_size = self.chance.choice([1, 2, 4])
        self.scheduler = Scheduler(
            num_blocks=self.chance.choice([1, 2]) * (60 // self.block_size),
            block_size=self.block_size,
            max_num_seqs=8,
            max_num_batched_tokens=24,
            watermark_ratio=0.0,
            window=window,
        )
        self.builder = BatchBuilder(self.block_size)
        self.last: ForwardBatch | None = None
        self.given_back: list[int] = []
        self.num_added = 0
        self.seen: Counter[str] = Counter()

    def add(self) -> None:
        prompt = self.chance.choice([1, 5, 20, 40])
        self.scheduler.add(
            make_sequence(
                self.num_added, prompt, max_tokens=self.chance.choice([2, 9, 18]),
                n=self.chance.choice([1, 1, 3]), priority=self.chance.choice([1, 2]),
                prompt_logprobs=self.chance.choice([None, None, 0]),
            )
        )  # fmt: skip
        self.num_added += 1

    def step(self) -> None:
        if self.chance.random() < 0.3:
            self.add()
        if self.scheduler.running and self.chance.random() < 0.05:
            self.scheduler.finish(self.chance.choice(self.scheduler.running))
            self.seen["cancelled"] += 1
        plan = self.scheduler.schedule()
        if len(plan) == 0:
            return
        columns = self.last.block_tables.shape[1] if self.last is not None else 0
        batch, before = self.builder.build(plan), self.last
        assert_is_rebuilt(batch, rebuilt(plan, self.block_size))
        in_place = batch is before
        same_rows = before is not None and before.num_decodes == batch.num_decodes
        self.seen["in place"] += in_place
        self.seen["copied"] += len(plan.block_copies)
        self.seen["widened"] += same_rows and batch.block_tables.shape[1] > columns
        given_back = [s.num_given_back for s in plan.decodes]
        self.seen["given back in place"] += in_place and given_back != self.given_back
        self.given_back = given_back
        self.seen["mixed"] += bool(plan.decodes and plan.prefills)
        self.seen["decodes alone"] += not plan.prefills
        self.last = batch
        outputs = self.scheduler.update(plan, [self.chance.randrange(9) for _ in plan.takers])
        self.seen["ended"] += sum(reason is not None for *_, reason in outputs)


@pytest.mark.parametrize("window", [None, 7])
def test_a_batch_is_a_plain_rebuild_whatever_happened_before(window: int | None) -> None:
    seen: Counter[str] = Counter()
    for seed in range(12):
        life = Life(seed, window)
        for _ in range(150):
            life.step()
        seen += life.seen
        seen["preempted"] += life.scheduler.counters.preemptions.total()
    expected = {
        "in place", "copied", "widened", "mixed", "decodes alone", "ended", "cancelled",
        "preempted",
    }  # fmt: skip
    expected |= {"given back in place"} if window else set()
    assert expected == {what for what, times in seen.items() if times}
