"""The scheduler under any order of arrivals, cancels and steps, with a runner that computes
nothing but knows which token of which context lies in which slot."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from factories import make_sequence
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import ScheduledSequence, Sequence, SequenceStatus, StepPlan

STOP_TOKEN = 5
MAX_STEPS = 1500


Content = tuple[str | None, tuple[int, ...]]  # what a slot holds: a token and all before it


@dataclass
class FakeRunner:
    """Writes what each slot holds, and asserts that every token of a context is still there."""

    block_size: int
    slots: dict[int, Content] = field(default_factory=dict)
    sampled: int = 0

    def run(self, plan: StepPlan) -> list[int]:
        for source, target in plan.block_copies:
            for offset in range(self.block_size):
                if (content := self.slots.get(source * self.block_size + offset)) is not None:
                    self.slots[target * self.block_size + offset] = content
        written = [slot for scheduled in plan for slot in self._store(scheduled)]
        assert len(set(written)) == len(written), "two sequences write to one slot"
        for scheduled in plan:
            self._read_context(scheduled)
        return [self._sample() for _ in plan.takers]

    def _slot(self, sequence: Sequence, position: int) -> int:
        block = sequence.block_table[position // self.block_size]
        return block * self.block_size + position % self.block_size

    def _content(self, sequence: Sequence, position: int) -> Content:
        return sequence.params.tenant, tuple(sequence.token_ids[: position + 1])

    def _store(self, scheduled: ScheduledSequence) -> Iterator[int]:
        sequence = scheduled.sequence
        first = sequence.num_computed_tokens
        for position in range(first, first + scheduled.num_tokens):
            slot = self._slot(sequence, position)
            self.slots[slot] = self._content(sequence, position)
            yield slot

    def _read_context(self, scheduled: ScheduledSequence) -> None:
        sequence = scheduled.sequence
        for position in range(sequence.num_computed_tokens + scheduled.num_tokens):
            assert self.slots[self._slot(sequence, position)] == self._content(sequence, position)

    def _sample(self) -> int:
        self.sampled += 1
        return self.sampled % 11  # every eleventh is STOP_TOKEN


class Scheduling(RuleBasedStateMachine):
    seen: ClassVar[Counter[str]] = Counter()  # what the examples brought about

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.integers(2, 30),
        max_num_seqs=st.integers(1, 6),
        spare_budget=st.integers(0, 12),
        watermark_ratio=st.sampled_from([0.0, 0.3]),
        enable_prefix_caching=st.booleans(),
    )
    def start(
        self,
        block_size: int,
        num_blocks: int,
        max_num_seqs: int,
        spare_budget: int,
        watermark_ratio: float,
        enable_prefix_caching: bool,
    ) -> None:
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            watermark_ratio=watermark_ratio,
            enable_prefix_caching=enable_prefix_caching,
        )
        self.runner = FakeRunner(block_size)
        self.max_len = num_blocks * block_size
        self.added: list[Sequence] = []
        self.everyone: list[Sequence] = []  # with the forks of those added
        self.ended: list[tuple[int, int]] = []

    @rule(data=st.data(), count=st.integers(1, 4))
    def add(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            max_tokens = data.draw(st.integers(1, min(12, self.max_len - 1)))
            longest = self.max_len - max_tokens
            prompt = data.draw(st.integers(1, min(8, longest)) | st.integers(1, longest))
            sequence = make_sequence(
                len(self.added),
                prompt=prompt,
                max_tokens=max_tokens,
                arrival_s=data.draw(st.sampled_from([0.0, 1.0, 2.0])),
                priority=data.draw(st.integers(1, 3)),
                stop_token_ids=data.draw(st.sampled_from([[], [STOP_TOKEN]])),
                n=data.draw(st.integers(1, self.scheduler.max_num_seqs)),
                tenant=data.draw(st.sampled_from([None, "a"])),
                cache=data.draw(st.sampled_from([True, True, False])),
            )
            self.added.append(sequence)
            self.everyone += [sequence, *sequence.forks]
            self.scheduler.add(sequence)
        self.scheduler.check_integrity()

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([*self.scheduler.waiting, *self.scheduler.running]))
        gone = [sequence, *sequence.forks]
        self.scheduler.finish(sequence)
        self.ended += [(s.request_id, s.index) for s in gone]
        assert all(s.status is SequenceStatus.FINISHED and not s.block_table for s in gone)
        self.scheduler.check_integrity()

    @precondition(lambda self: self.scheduler.has_work)
    @rule(times=st.integers(1, 4))
    def steps(self, times: int) -> None:
        for _ in range(times):
            if self.scheduler.has_work:
                self.step()

    def step(self) -> None:
        was_running, was_waiting = list(self.scheduler.running), list(self.scheduler.waiting)
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.check_plan(plan)
        self.check_queues(was_running, was_waiting)
        outputs = self.scheduler.update(plan, self.runner.run(plan))
        self.ended += [(s.request_id, s.index) for s, _, reason in outputs if reason is not None]
        counters = self.scheduler.counters
        self.seen["copied"] += counters.copied_blocks
        self.seen["found"] += counters.prefix_hit_tokens
        self.seen["evicted"] += self.scheduler.allocator.num_evictions
        self.scheduler.check_integrity()

    def check_plan(self, plan: StepPlan) -> None:
        assert len(plan) > 0, "a step without progress"
        assert sum(s.num_tokens for s in plan) <= self.scheduler.max_num_batched_tokens
        planned = [scheduled.sequence for scheduled in plan]
        assert len(set(map(id, planned))) == len(planned), "a sequence is planned twice"
        resumed = [s.sequence for s in plan.prefills]  # its last token may be all that is missing
        decoding = [s for s in self.scheduler.running if s.is_decoding and s not in resumed]
        assert planned[: len(plan.decodes)] == decoding, "every decode runs, and they run first"
        assert all(scheduled.num_tokens == 1 for scheduled in plan.decodes)
        for scheduled in plan.prefills:
            sequence = scheduled.sequence
            assert 1 <= scheduled.num_tokens <= sequence.num_pending_tokens
            room = len(sequence.block_table) * self.scheduler.block_size
            assert room >= len(sequence.token_ids), "admitted without its whole known length"

    def check_queues(self, was_running: list[Sequence], was_waiting: list[Sequence]) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        preempted = [s for s in was_running if s.status is SequenceStatus.WAITING]
        kept = [s for s in was_running if s.status is SequenceStatus.RUNNING]
        assert was_running == kept + preempted, "a victim was not the last in order"
        admitted = [s for s in running if s not in was_running]
        self.seen["preempted"] += len(preempted)
        self.seen["preempted in prefill"] += sum(s.num_output_tokens == 0 for s in preempted)
        self.seen["overtaking"] += any(s.order < kept[-1].order for s in admitted if kept)
        if admitted and waiting:
            assert max(s.order for s in admitted) < waiting[0].order, "somebody was passed"
        assert all(s in was_waiting for s in admitted)
        if admitted and (kept or len(admitted) > 1):
            assert self.scheduler.allocator.num_free >= self.scheduler.watermark_blocks

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(MAX_STEPS):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "a deadlock or a livelock"
        everyone = [(s.request_id, s.index) for s in self.everyone]
        assert sorted(self.ended) == everyone, "not one end for each"
        assert self.scheduler.allocator.num_used == 0


def test_scheduler_keeps_its_rules() -> None:
    Scheduling.seen.clear()
    run_state_machine_as_test(
        Scheduling,
        settings=settings(
            max_examples=100,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )
    kinds = ("preempted", "preempted in prefill", "overtaking", "copied", "found", "evicted")
    assert all(Scheduling.seen[kind] > 0 for kind in kinds), Scheduling.seen
