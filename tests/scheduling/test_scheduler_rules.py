"""The scheduler under any order of arrivals, cancels, steps, and losses of a tier, with a runner
that computes nothing but knows which token of which context lies in which slot."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
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

from factories import all_scheduled, make_sequence
from fake_tiers import Content, FakeTiers
from octavo.scheduling.preemption import PreemptionMode
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import (
    UNKNOWN_TOKEN,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
    StepInFlight,
    StepPlan,
)

STOP_TOKEN = 5
MAX_STEPS = 1500


@dataclass
class FakeRunner:
    """Writes what each slot holds, and asserts that every token of a context is still there."""

    block_size: int
    window: int | None = None
    tiers: FakeTiers | None = None
    slots: dict[int, Content] = field(default_factory=dict)
    sampled: int = 0
    latest: dict[int, int] = field(default_factory=dict)  # token of the last step, by id(sequence)

    def run(self, plan: StepPlan) -> list[int]:
        for block, key in (*plan.block_saves, *plan.block_writes):
            assert self.tiers is not None
            self.tiers.stored[key] = {
                offset: self.slots[block * self.block_size + offset]
                for offset in range(self.block_size)
                if block * self.block_size + offset in self.slots
            }
        for source, target in plan.block_copies:
            for offset in range(self.block_size):
                if (content := self.slots.get(source * self.block_size + offset)) is not None:
                    self.slots[target * self.block_size + offset] = content
        for target, row in plan.block_loads:
            for offset in range(self.block_size):
                self.slots.pop(target * self.block_size + offset, None)
                if offset in row:  # type: ignore[operator]
                    self.slots[target * self.block_size + offset] = row[offset]  # type: ignore[index]
        planned = all_scheduled(plan)
        written = [slot for scheduled in planned for slot in self._store(scheduled)]
        assert len(set(written)) == len(written), "two sequences write to one slot"
        for scheduled in planned:
            self._read_context(scheduled)
        tokens = [self._sample() for _ in plan.takers]
        self.latest = {id(taker): token for taker, token in zip(plan.takers, tokens, strict=True)}
        return tokens

    def _slot(self, sequence: Sequence, position: int) -> int:
        block = sequence.block_table[position // self.block_size]
        assert block >= 0, "it was given back"
        return block * self.block_size + position % self.block_size

    def _content(self, sequence: Sequence, position: int) -> Content:
        known = sequence.token_ids[: position + 1]
        if known[-1] == UNKNOWN_TOKEN:
            known[-1] = self.latest[id(sequence)]
        return sequence.params.tenant, tuple(known)

    def _store(self, scheduled: ScheduledSequence) -> Iterator[int]:
        sequence = scheduled.sequence
        first = sequence.num_computed_tokens
        for position in range(first, first + scheduled.num_tokens):
            slot = self._slot(sequence, position)
            self.slots[slot] = self._content(sequence, position)
            yield slot

    def _read_context(self, scheduled: ScheduledSequence) -> None:
        sequence = scheduled.sequence
        reach = 0
        if self.window is not None:
            reach = max(sequence.num_computed_tokens - self.window + 1, 0)
        for position in range(reach, sequence.num_computed_tokens + scheduled.num_tokens):
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
        spare_budget=st.integers(0, 12) | st.integers(0, 2),
        watermark_ratio=st.sampled_from([0.0, 0.3]),
        enable_prefix_caching=st.booleans(),
        window=st.sampled_from([None, None, 3, 6]),
        tiers=st.builds(FakeTiers, st.booleans(), st.booleans(), st.sampled_from([0.0, 1.0, 100.0]))
        | st.builds(FakeTiers, st.booleans(), st.just(False), st.just(0.1))
        | st.none(),
        preemption=st.sampled_from(["auto", "swap", "swap", "recompute"]),
        ahead=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def start(
        self,
        block_size: int,
        num_blocks: int,
        max_num_seqs: int,
        spare_budget: int,
        watermark_ratio: float,
        enable_prefix_caching: bool,
        window: int | None,
        tiers: FakeTiers | None,
        preemption: PreemptionMode,
        ahead: bool,
        seed: int,
    ) -> None:
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            watermark_ratio=watermark_ratio,
            enable_prefix_caching=enable_prefix_caching,
            window=window,
            namespace=b"a model",
            tiers=tiers,
            preemption=preemption,
        )
        self.tiers = tiers
        self.fate = Random(seed)
        self.runner = FakeRunner(block_size, window, tiers)
        self.max_len = num_blocks * block_size
        self.added: list[Sequence] = []
        self.everyone: list[Sequence] = []  # with the forks of those added
        self.ended: list[tuple[int, int]] = []
        self.ahead = ahead
        self.in_flight: tuple[StepInFlight, list[int]] | None = None

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

    @precondition(lambda self: self.scheduler.waiting or self.scheduler.running)
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
                self.meet_fate()

    def meet_fate(self) -> None:
        """Of what is in a tier some is lost, and some of what is under way arrives."""
        if self.tiers is None:
            return
        if self.fate.random() < 0.1:
            lost = [key for key in list(self.tiers.stored) if self.fate.random() < 0.3]
            self.tiers.discard(lost)
            self.seen["lost"] += len(lost)
        if self.fate.random() < 0.4:
            self.arrive(lossy=self.fate.random() < 0.5)

    def arrive(self, *, lossy: bool = False) -> None:
        assert self.tiers is not None
        for fetch in self.tiers.under_way:
            if not fetch.is_done:
                if lossy:
                    self.tiers.discard(fetch.keys[len(fetch.keys) // 2 :])
                fetch.arrive()
        self.tiers.under_way.clear()

    def step(self) -> None:
        was_running, was_waiting = list(self.scheduler.running), list(self.scheduler.waiting)
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.check_plan(plan)
        self.check_queues(was_running, was_waiting)
        tokens = self.runner.run(plan)
        booked = self.scheduler.advance(plan)
        self.scheduler.check_integrity()
        if len(plan) > 0:
            self.scheduler.costs.observe(plan, plan.num_prefill_tokens + 0.01)
        if self.ahead:
            self.settle()
            self.in_flight = booked, tokens
        else:
            self.in_flight = booked, tokens
            self.settle()

    def settle(self) -> None:
        if self.in_flight is None:
            return
        outputs = self.scheduler.settle(*self.in_flight)
        self.in_flight = None
        self.seen["wasted"] += outputs.count(None)
        self.ended += [(o[0].request_id, o[0].index) for o in outputs if o and o[2] is not None]
        self.scheduler.check_integrity()

    def count_seen(self) -> None:
        counters = self.scheduler.counters
        self.seen["copied"] += counters.copied_blocks
        self.seen["evicted"] += self.scheduler.allocator.evictions.total()
        self.seen["saved"] += counters.saved_blocks
        self.seen["loaded"] += counters.loaded_blocks
        for kinds in (
            counters.preemptions, counters.recomputed_tokens, counters.prefix_hit_tokens
        ):  # fmt: skip
            for kind, count in kinds.items():
                self.seen[f"{kind}"] += count

    def check_plan(self, plan: StepPlan) -> None:
        if len(plan) == 0:
            if self.in_flight is not None and self.in_flight[0].takers:
                return  # nothing to plan before its tokens are known
            assert not self.scheduler.running, "a step without progress"
            if not self.scheduler.waiting:
                assert plan.block_writes, "there was no work"
                return
            first = self.scheduler.waiting[0].awaited
            assert first is not None and not first.fetch.is_done
            assert self.tiers is not None
            self.arrive(lossy=self.fate.random() < 0.5)
            self.seen["idle"] += 1
        scheduled_tokens = sum(scheduled.num_tokens for scheduled in all_scheduled(plan))
        assert scheduled_tokens <= self.scheduler.max_num_batched_tokens
        planned = [scheduled.sequence for scheduled in all_scheduled(plan)]
        assert len(set(map(id, planned))) == len(planned), "a sequence is planned twice"
        resumed = [s.sequence for s in plan.prefills]  # its last token may be all that is missing
        decoding = [
            s
            for s in self.scheduler.running
            if s.is_decoding and s not in resumed and len(s.token_ids) < s.max_len
        ]
        assert plan.decodes == decoding, "every decode runs"
        for scheduled in plan.prefills:
            sequence = scheduled.sequence
            assert 1 <= scheduled.num_tokens <= sequence.num_pending_tokens
            room = len(sequence.block_table) * self.scheduler.block_size
            assert room >= len(sequence.token_ids), "admitted without its whole known length"

    def check_queues(self, was_running: list[Sequence], was_waiting: list[Sequence]) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        preempted = [s for s in was_running if s.status is SequenceStatus.WAITING]
        kept = [s for s in was_running if s.status is SequenceStatus.RUNNING]
        assert was_running[:1] == kept[:1], "the first in order was a victim"
        for victim in preempted:
            others = [s for s in kept[1:] if not s.goes_first]
            assert all(s.params.priority <= victim.params.priority for s in others)
            assert victim.num_passed_over <= 3 or not others
        self.seen["goes first"] += any(s.goes_first for s in running)
        admitted = [s for s in running if s not in was_running]
        self.seen["preempted"] += len(preempted)
        self.seen["overtaking"] += any(s.order < kept[-1].order for s in admitted if kept)
        last = max((s.order for s in admitted), default=None)
        for passed in waiting if last else ():
            if passed.order < last:
                in_flight = self.scheduler._reuse._in_flight
                waits = any(content.key in in_flight for content in passed.contents)
                self.seen["passed for its prefix"] += waits
                self.seen["passed for a tier"] += passed.awaited is not None
                assert waits or passed.awaited is not None, "somebody was passed"
                assert passed.awaited is None or passed.num_passed_over <= 3
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
        self.settle()
        self.count_seen()
        assert not self.scheduler.has_work, "a deadlock or a livelock"
        everyone = [(s.request_id, s.index) for s in self.everyone]
        assert sorted(self.ended) == everyone, "not one end for each"
        assert self.scheduler.allocator.num_used == 0
        assert not self.scheduler._reuse._in_flight and not self.scheduler._saving._wanted
        assert self.scheduler.allocator.take_evicted() == [], "evictions pile up"
        assert all(s.awaited is None for s in self.everyone)


def test_scheduler_keeps_its_rules() -> None:
    Scheduling.seen.clear()
    run_state_machine_as_test(
        Scheduling,
        settings=settings(
            max_examples=300,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )
    kinds = (
        "preempted", "overtaking", "copied", "evicted", "goes first",
        "wasted", "saved", "loaded", "lost", "idle", "passed for its prefix", "passed for a tier",
        "swap", "recompute", "pool", "tier",
        "preemption", "eviction", "tier_loss",
    )  # fmt: skip
    assert all(Scheduling.seen[kind] > 0 for kind in kinds), Scheduling.seen
