"""What is found instead of computed: in the pool, soon in the pool, in a tier."""

import pytest

from factories import make_scheduler, make_sequence
from fake_tiers import FakeTiers, add, step
from octavo.scheduling import block_reuse
from octavo.scheduling.block_allocator import NO_BLOCK
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import Sequence, StepPlan


def computed(plan: StepPlan) -> list[tuple[int, int]]:
    return [(s.sequence.request_id, s.num_tokens) for s in plan.prefills]


def caching_scheduler(**settings: object) -> Scheduler:
    return make_scheduler(enable_prefix_caching=True, **settings)  # type: ignore[arg-type]


def store(tiers: FakeTiers, sequence: Sequence, num_blocks: int) -> None:
    """As if another run had left the beginning of the sequence."""
    for content in sequence.contents_of(4 * num_blocks, 4):
        tiers.stored[content.key] = {}


def test_sequences_that_begin_alike_and_come_together_compute_it_once() -> None:
    scheduler = caching_scheduler(max_num_batched_tokens=8)
    add(scheduler, *(make_sequence(index, prompt=17 + index) for index in range(3)))
    assert computed(step(scheduler)) == [(0, 8)]
    assert computed(step(scheduler)) == [(0, 8)]
    # The last token of the first, and of the others what comes after the 16.
    assert computed(step(scheduler)) == [(0, 1), (1, 2), (2, 3)]
    assert [s.num_cached_tokens for s in scheduler.running] == [0, 16, 16]
    assert scheduler.counters.prefix_hit_tokens == {"pool": 32}


def test_others_overtake_who_waits_for_its_prefix() -> None:
    scheduler = caching_scheduler(max_num_batched_tokens=9)
    waits = make_sequence(1, prompt=17)
    other = make_sequence(2, prompt=5, tenant="other")
    add(scheduler, make_sequence(0, prompt=17), waits, other)
    assert computed(step(scheduler)) == [(0, 9)]
    assert computed(step(scheduler)) == [(0, 8), (2, 1)]
    assert waits.num_passed_over == 0, "it is for its own good"


@pytest.mark.parametrize("end", ["finish", "preempt"])
def test_who_waits_for_a_prefix_computes_it_when_the_other_is_gone(end: str) -> None:
    scheduler = caching_scheduler(max_num_batched_tokens=8)
    first, second = make_sequence(0, prompt=17), make_sequence(1, prompt=17, max_tokens=2)
    add(scheduler, first, second)
    assert computed(step(scheduler)) == [(0, 8)]
    if end == "finish":
        scheduler.finish(first)
        assert computed(step(scheduler)) == [(1, 8)]
    else:
        first.arrival_s += 100  # it comes back after the other
        scheduler._preempt(first, "a test says so")
        assert computed(step(scheduler)) == [(1, 8)]
    assert second.num_cached_tokens == 8


def test_a_tier_gives_a_prefix() -> None:
    tiers = FakeTiers(is_shared=False, at_once=True, block_s=0.1)
    scheduler = caching_scheduler(tiers=tiers)
    sequence = make_sequence(0, prompt=18)
    add(scheduler, sequence)
    store(tiers, sequence, 3)
    plan = step(scheduler)
    assert computed(plan) == [(0, 6)]
    assert [block for block, _ in plan.block_loads] == sequence.block_table[:3]
    assert sequence.num_cached_tokens == 12
    assert scheduler.counters.prefix_hit_tokens == {"pool": 0, "tier": 12}
    # From now on it is found in the pool.
    add(scheduler, again := make_sequence(1, prompt=18))
    step(scheduler)
    assert again.num_cached_tokens == 16 and len(tiers.under_way) == 1


def test_a_tier_that_is_slower_than_computing_is_not_asked() -> None:
    tiers = FakeTiers(is_shared=False, at_once=True, block_s=5.0)
    scheduler = caching_scheduler(tiers=tiers)
    add(scheduler, make_sequence(0, prompt=4, tenant="other"))
    step(scheduler)
    sequence = make_sequence(1, prompt=18)
    add(scheduler, sequence)
    store(tiers, sequence, 3)
    assert computed(step(scheduler)) == [(1, 18)]
    assert not tiers.under_way


def test_others_overtake_who_waits_for_a_tier_three_times() -> None:
    tiers = FakeTiers(is_shared=False, at_once=False, block_s=0.1)
    scheduler = caching_scheduler(tiers=tiers)
    waits = make_sequence(0, prompt=18)
    add(scheduler, waits)
    store(tiers, waits, 4)
    assert len(step(scheduler)) == 0
    for index in range(1, 4):
        add(scheduler, make_sequence(index, prompt=5, tenant="other"))
        assert computed(step(scheduler))[0][0] == index
    assert waits.goes_first
    add(scheduler, make_sequence(4, prompt=5, priority=1, tenant="other"))
    assert computed(step(scheduler)) == [], "now nobody passes"
    tiers.under_way[0].arrive()
    assert computed(step(scheduler))[0] == (0, 2)
    assert len(tiers.under_way) == 1


def test_a_tier_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tiers = FakeTiers(is_shared=False, at_once=False, block_s=0.1)
    scheduler = caching_scheduler(tiers=tiers)
    sequence = make_sequence(0, prompt=18)
    add(scheduler, sequence)
    store(tiers, sequence, 4)
    assert len(step(scheduler)) == 0
    later_s = block_reuse.time.monotonic() + block_reuse._PATIENCE_S + 1
    monkeypatch.setattr(block_reuse.time, "monotonic", lambda: later_s)
    assert computed(step(scheduler)) == [(0, 18)]
    assert tiers.under_way[0].is_cancelled
    assert scheduler.counters.recomputed_tokens["tier_loss"] == 16


def test_what_a_tier_loses_is_computed_and_counted() -> None:
    tiers = FakeTiers(is_shared=False, at_once=False, block_s=0.1)
    scheduler = caching_scheduler(tiers=tiers)
    sequence = make_sequence(0, prompt=18)
    add(scheduler, sequence)
    store(tiers, sequence, 4)
    step(scheduler)
    tiers.discard([content.key for content in sequence.contents[1:2]])
    tiers.under_way[0].arrive()
    assert computed(step(scheduler)) == [(0, 14)]
    assert scheduler.counters.recomputed_tokens == {"tier_loss": 12, "eviction": 0}


def test_a_shared_tier_is_asked_for_what_others_may_have_stored() -> None:
    tiers = FakeTiers(is_shared=True, at_once=True, block_s=0.1)
    scheduler = caching_scheduler(tiers=tiers)
    first = make_sequence(0, prompt=18)
    add(scheduler, first)
    assert computed(step(scheduler)) == [(0, 18)]
    assert scheduler.counters.recomputed_tokens.total() == 0, "a miss is no loss"
    plan = step(scheduler)
    keys = [content.key for content in first.contents_of(16, 4)]
    assert [key for _, key in plan.block_writes] == keys, "and is given the prompt's blocks"
    assert [block for block, _ in plan.block_writes] == first.block_table[:4]


def test_a_prompt_that_ends_in_its_first_step_is_given_to_a_shared_tier() -> None:
    tiers = FakeTiers(is_shared=True, at_once=True, block_s=0.1)
    scheduler = caching_scheduler(tiers=tiers)
    sequence = make_sequence(0, prompt=9, max_tokens=1)
    add(scheduler, sequence)
    assert computed(step(scheduler)) == [(0, 9)]
    assert scheduler.has_work and not scheduler.running and not scheduler.waiting
    plan = step(scheduler)
    assert len(plan) == 0, "there is nothing to compute, but blocks to write"
    assert [key for _, key in plan.block_writes] == [
        content.key for content in sequence.contents_of(8, 4)
    ]
    assert not scheduler.has_work


def test_evicted_prompts_that_come_again_are_counted() -> None:
    scheduler = caching_scheduler(num_blocks=8)
    for request_id, tenant in ((0, "a"), (1, "b"), (2, "a")):
        sequence = make_sequence(request_id, prompt=26, max_tokens=1, tenant=tenant)
        add(scheduler, sequence)
        while scheduler.has_work:
            step(scheduler)
    # The second evicts the end of the first: a 7th free block is there, 6 of its 6 + 1 go.
    assert scheduler.counters.recomputed_tokens["eviction"] == 24 - sequence.num_cached_tokens > 0


def test_blocks_behind_the_window_are_given_back() -> None:
    scheduler = make_scheduler(num_blocks=16, window=6, max_num_batched_tokens=8)
    sequence = make_sequence(0, prompt=24, max_tokens=12)
    add(scheduler, sequence)
    held = []
    while scheduler.has_work:
        step(scheduler)
        held.append(scheduler.allocator.num_used)
        first = max(sequence.num_computed_tokens - 6 + 1, 0) // 4
        assert sequence.block_table[:first] == [NO_BLOCK] * min(first, len(sequence.block_table))
    # Of 8, 16 and 24 computed tokens the last 5 are in reach of the next.
    assert held[:3] == [6, 4, 2] and set(held[3:-1]) == {2}


def test_with_a_window_only_what_is_in_reach_must_be_found() -> None:
    scheduler = caching_scheduler(num_blocks=8, window=6)
    add(scheduler, make_sequence(0, prompt=18, max_tokens=1))
    while scheduler.has_work:
        step(scheduler)
    assert scheduler.allocator.num_cached == 4
    # The blocks that it gave back first are evicted first.
    add(scheduler, make_sequence(1, prompt=20, max_tokens=1, tenant="other"))
    plan = step(scheduler)
    assert scheduler.allocator.evictions.total() == 1 and computed(plan) == [(1, 20)]
    scheduler.finish(scheduler.running[0]) if scheduler.running else None
    again = make_sequence(2, prompt=18, max_tokens=2)
    add(scheduler, again)
    assert computed(step(scheduler)) == [(2, 2)]
    assert again.num_cached_tokens == 16
    assert again.block_table[:2] == [NO_BLOCK] * 2
