"""Block ids and free order, act by act; then any order of acts."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.scheduling.block_allocator import BlockAllocator


def test_allocator_story() -> None:
    allocator = BlockAllocator(6)
    first = allocator.allocate(2)
    assert first == [0, 1]
    second = allocator.allocate(3)
    assert second == [2, 3, 4]
    assert (allocator.num_free, allocator.num_used) == (1, 5)

    allocator.free(first)
    assert allocator.allocate(0) == []
    assert allocator.allocate(1) == [0], "the last freed goes first, a table in its own order"
    assert allocator.allocate(2) == [1, 5]
    assert allocator.num_free == 0

    allocator.share([2, 3])
    allocator.free(second)
    assert allocator.num_free == 1, "shared blocks stay until both have given them back"
    assert allocator.allocate(1) == [4]
    allocator.free([2, 3])
    assert allocator.allocate(2) == [2, 3]
    allocator.check_integrity()


def test_allocate_asserts_when_too_few_are_free() -> None:
    allocator = BlockAllocator(2)
    allocator.allocate(1)
    with pytest.raises(AssertionError):
        allocator.allocate(2)
    with pytest.raises(AssertionError):
        allocator.allocate(-1)
    assert allocator.num_free == 1


def test_free_asserts_when_a_block_is_free_already() -> None:
    allocator = BlockAllocator(2)
    blocks = allocator.allocate(1)
    allocator.free(blocks)
    with pytest.raises(AssertionError):
        allocator.free(blocks)


def test_share_asserts_when_a_block_is_free() -> None:
    with pytest.raises(KeyError):
        BlockAllocator(2).share([0])


@pytest.mark.parametrize("damage", ["lost", "twice", "both"])
def test_check_integrity_finds_a_damaged_list(damage: str) -> None:
    allocator = BlockAllocator(3)
    held = allocator.allocate(1)
    if damage == "lost":
        allocator._free.pop()
    elif damage == "twice":
        allocator._free.append(allocator._free[0])
    else:
        allocator._free += held
    with pytest.raises(AssertionError):
        allocator.check_integrity()


class Allocations(RuleBasedStateMachine):
    """Against a model that knows who holds what: a list of holders, each with its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(12)
        self.holders: list[list[int]] = []

    @rule(count=st.integers(0, 12))
    def allocate(self, count: int) -> None:
        if count > self.allocator.num_free:
            return
        held = {block for holder in self.holders for block in holder}
        taken = self.allocator.allocate(count)
        assert len(set(taken)) == count and not held.intersection(taken)
        self.holders.append(taken)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        part = holder[: data.draw(st.integers(0, len(holder)))]
        self.allocator.share(part)
        self.holders.append(list(part))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.allocator.free(self.holders.pop(index))

    @invariant()
    def counts_agree(self) -> None:
        held = {block for holder in self.holders for block in holder}
        assert self.allocator.num_used == len(held)
        assert self.allocator.num_free == 12 - len(held)
        self.allocator.check_integrity()


Allocations.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
test_allocator_agrees_with_a_model = Allocations.TestCase
