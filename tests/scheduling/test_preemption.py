"""Who is preempted, and how it comes back."""

import logging

import pytest

from factories import make_scheduler, make_sequence
from fake_tiers import FakeTiers, add, step
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import MAX_PASSED_OVER, Sequence, SequenceStatus, StepPlan

FAR_S = 100.0  # for a block; what the tests' scheduler learns is 1 s for a token


def run_until_preempted(scheduler: Scheduler) -> Sequence:
    for _ in range(100):
        step(scheduler)
        for sequence in scheduler.waiting:
            if sequence.loss is not None:
                return sequence
    raise AssertionError("nobody was preempted")


def run_until_back(scheduler: Scheduler, sequence: Sequence) -> StepPlan:
    for _ in range(100):
        plan = step(scheduler)
        if sequence.is_running:
            return plan
    raise AssertionError("it did not come back")


@pytest.mark.parametrize(
    ("prompts", "priorities", "victim"),
    [
        ((8, 8, 4), (2, 2, 2), 2),  # the last has the least to lose
        ((8, 4, 8), (2, 2, 2), 1),  # one in the middle has
        ((4, 8, 8), (2, 2, 2), 2),  # the first would lose less, but goes on; the last of equals
        ((8, 4, 8), (2, 2, 3), 2),  # the lowest priority
        ((8, 4, 8), (3, 2, 1), 0),  # in order of priority 2, 1, 0: 0 is not the first
    ],
)
def test_victim(prompts: tuple[int, ...], priorities: tuple[int, ...], victim: int) -> None:
    scheduler = make_scheduler(num_blocks=6)
    for index, (prompt, priority) in enumerate(zip(prompts, priorities, strict=True)):
        add(scheduler, make_sequence(index, prompt=prompt, priority=priority, max_tokens=9))
    assert run_until_preempted(scheduler).request_id == victim


def test_what_others_hold_too_is_not_lost() -> None:
    scheduler = make_scheduler(num_blocks=8, enable_prefix_caching=True)
    add(scheduler, make_sequence(0, prompt=13, max_tokens=20))
    step(scheduler)
    # It shares 3 of its 4 blocks, and so has less to lose than one of 8 tokens.
    sharing = make_sequence(1, prompt=14, max_tokens=9)
    other = make_sequence(2, prompt=7, max_tokens=9, tenant="other")
    add(scheduler, sharing, other)
    step(scheduler)
    assert sharing.num_cached_tokens == 12 and other.is_running
    assert run_until_preempted(scheduler) is sharing


def test_a_sequence_passed_over_goes_first() -> None:
    scheduler = make_scheduler(num_blocks=8)
    patient = make_sequence(2, prompt=4, max_tokens=28)
    add(scheduler, make_sequence(0, prompt=4, max_tokens=28), patient)
    step(scheduler)
    for count in range(1, MAX_PASSED_OVER + 1):
        assert scheduler._preemption.victim(scheduler.running) is patient
        scheduler._preempt(patient, "a test says so")
        assert (patient.num_passed_over, patient.goes_first) == (count, count == MAX_PASSED_OVER)
        step(scheduler)
        assert patient.is_running
    urgent = make_sequence(3, prompt=4, priority=1)
    add(scheduler, urgent)
    step(scheduler)
    assert [s.request_id for s in scheduler.running] == [2, 3, 0]
    assert scheduler._preemption.victim(scheduler.running).request_id == 0
    assert scheduler._preemption.victim(scheduler.running[:2]) is urgent
    assert scheduler._preemption.victim(scheduler.running[:1]) is patient, "there is no other"


@pytest.mark.parametrize(
    ("mode", "block_s", "kind"),
    [
        ("auto", 1.0, "swap"),  # 2 s for a block of 4 tokens, which take 4 s to compute
        ("auto", 3.0, "recompute"),
        ("swap", FAR_S, "swap"),
        ("recompute", 0.0, "recompute"),
    ],
)
def test_kind_is_the_cheaper_one(mode: str, block_s: float, kind: str) -> None:
    tiers = FakeTiers(is_shared=False, at_once=True, block_s=block_s)
    scheduler = make_scheduler(num_blocks=8, tiers=tiers, preemption=mode)
    add(scheduler, *(make_sequence(index, prompt=9, max_tokens=9) for index in range(2)))
    victim = run_until_preempted(scheduler)
    assert victim.loss is not None and victim.loss.kind == kind
    assert scheduler.counters.preemptions == {kind: 1}


def test_a_transfer_costs_what_it_takes_beyond_the_wait() -> None:
    tiers = FakeTiers(is_shared=False, at_once=True, block_s=3.0)
    scheduler = make_scheduler(num_blocks=8, tiers=tiers)
    scheduler.costs.observe_wait(60.0)
    add(scheduler, *(make_sequence(index, prompt=9, max_tokens=9) for index in range(2)))
    run_until_preempted(scheduler)
    assert scheduler.counters.preemptions == {"swap": 1}
    assert not scheduler.costs.saving_pays, "for a block that nobody waits for it counts in full"


def test_without_tiers_all_is_recomputed() -> None:
    scheduler = make_scheduler(num_blocks=8, preemption="swap")
    add(scheduler, *(make_sequence(index, prompt=9, max_tokens=9) for index in range(2)))
    run_until_preempted(scheduler)
    assert scheduler.counters.preemptions == {"recompute": 1}


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_swapped_sequence_goes_on_where_it_was(
    enable_prefix_caching: bool, lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "octavo")
    tiers = FakeTiers(is_shared=False, at_once=True, block_s=0.1)
    scheduler = make_scheduler(
        num_blocks=9, tiers=tiers, enable_prefix_caching=enable_prefix_caching
    )
    add(scheduler, make_sequence(0, prompt=9, max_tokens=27, tenant="a"))
    step(scheduler)
    add(scheduler, make_sequence(1, prompt=11, max_tokens=20, tenant="b"))
    victim = run_until_preempted(scheduler)
    assert victim.request_id == 1 and victim.loss is not None
    num_computed = victim.loss.num_tokens
    assert num_computed == len(victim.token_ids) - 1 and num_computed % 4 != 0
    while victim.loss is not None:
        step(scheduler)  # the other takes all blocks, and ends
        if lost:
            tiers.discard(list(tiers.stored)[:1])
    assert scheduler.counters.saved_blocks > 0
    recomputed = scheduler.counters.recomputed_tokens
    (line,) = [r.message for r in caplog.records if "was preempted" in r.message]
    assert "request 1.0 (priority 2) was preempted (swap, its preemption 1) because" in line
    assert f"{num_computed} computed tokens gave way; it is back with" in line
    if lost:
        assert recomputed.total() > 0
    else:
        assert recomputed.total() == 0
        assert scheduler.counters.loaded_blocks > 0
        assert "0 tokens are computed again" in line


@pytest.mark.parametrize("end", ["while it waits", "after its return"])
def test_a_private_sequence_leaves_nothing(end: str) -> None:
    tiers = FakeTiers(is_shared=False, at_once=True, block_s=0.1)
    scheduler = make_scheduler(num_blocks=9, tiers=tiers, enable_prefix_caching=True)
    add(scheduler, make_sequence(0, prompt=9, max_tokens=27))
    step(scheduler)
    add(scheduler, make_sequence(1, prompt=11, max_tokens=20, cache=False))
    victim = run_until_preempted(scheduler)
    assert victim.request_id == 1 and victim.loss is not None
    keys = set(victim.loss.keys)
    while not keys & tiers.stored.keys():
        step(scheduler)
    if end == "while it waits":
        scheduler.finish(victim)
    else:
        while victim.status is not SequenceStatus.FINISHED:
            step(scheduler)
    assert not keys & tiers.stored.keys()
    assert not any(key in keys for _, key in scheduler.allocator.kept())
    scheduler.check_integrity()


def test_a_preempted_sequence_that_ends_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")
    scheduler = make_scheduler(num_blocks=8)
    add(scheduler, *(make_sequence(index, prompt=9, max_tokens=9) for index in range(2)))
    scheduler.finish(run_until_preempted(scheduler))
    (line,) = [r.message for r in caplog.records]
    assert line.endswith("it ended before it came back")
    assert not scheduler.counters.recomputed_tokens
