"""Tiers for tests of the scheduler alone: they keep what they are given until a test loses it, and
what is fetched arrives when the test says so."""

from collections.abc import Sequence as List
from dataclasses import dataclass, field

from octavo.scheduling.block_allocator import BlockKey
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import Sequence, StepPlan

Content = tuple[str | None, tuple[int, ...]]  # what a slot holds: a token and all before it


Row = dict[int, Content]  # what a block holds, by offset


@dataclass
class FakeFetch:
    keys: tuple[BlockKey, ...]
    stored: dict[BlockKey, Row]
    is_done: bool = False
    rows: list[Row] = field(default_factory=list)
    is_cancelled: bool = False

    @property
    def sources(self) -> list[str]:
        return ["tier"] * len(self.rows)

    def arrive(self) -> None:
        for key in self.keys:
            if key not in self.stored:
                break
            self.rows.append(self.stored[key])
        self.is_done = True

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class FakeTiers:
    """Keeps what it is given, until it is lost; a fetch arrives when it is told to."""

    is_shared: bool
    at_once: bool
    block_s: float  # to store or to fetch a block; computing a token takes 1 s
    stored: dict[BlockKey, Row] = field(default_factory=dict)
    under_way: list[FakeFetch] = field(default_factory=list)

    @property
    def outlive_engine(self) -> bool:
        return self.is_shared

    def held(self, keys: List[BlockKey]) -> int:
        missing = [index for index, key in enumerate(keys) if key not in self.stored]
        return min(missing, default=len(keys))

    def may_hold(self, keys: List[BlockKey]) -> int:
        return len(keys) if self.is_shared else self.held(keys)

    def fetch(self, keys: List[BlockKey]) -> FakeFetch:
        fetch = FakeFetch(tuple(keys), self.stored)
        self.under_way.append(fetch)
        if self.at_once:
            fetch.arrive()
        return fetch

    def discard(self, keys: List[BlockKey]) -> None:
        for key in keys:
            self.stored.pop(key, None)

    def store_s(self, num_blocks: int) -> float:
        return num_blocks * self.block_s

    fetch_s = store_s


def step(scheduler: Scheduler) -> StepPlan:
    """One step, as if run; computing a token takes a second."""
    plan = scheduler.schedule()
    tiers = scheduler._tiers
    assert tiers is None or isinstance(tiers, FakeTiers)
    for _, key in plan.block_saves:
        assert tiers is not None
        tiers.stored[key] = {}
    scheduler.update(plan, [7] * len(plan.takers))
    scheduler.costs.observe(plan, plan.num_prefill_tokens + 0.01)
    scheduler.check_integrity()
    return plan


def add(scheduler: Scheduler, *sequences: Sequence) -> None:
    for sequence in sequences:
        scheduler.add(sequence)
