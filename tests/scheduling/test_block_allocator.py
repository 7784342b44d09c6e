"""Block ids and free order, act by act; then any order of acts."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.scheduling import block_allocator
from octavo.scheduling.block_allocator import (
    BlockAllocator,
    BlockContent,
    chain_key,
    root_key,
)


def content(*token_ids: int, parent: bytes = b"") -> BlockContent:
    return BlockContent(chain_key(parent, token_ids), token_ids)


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


def test_a_key_covers_namespace_salt_parent_and_tokens() -> None:
    roots = {root_key(namespace, salt) for namespace in (b"m", b"n") for salt in ("", "a")}
    keys = {chain_key(root, tokens) for root in roots for tokens in ((1, 2), (2, 1), (1,))}
    assert (len(roots), len(keys)) == (4, 12)
    assert len({len(key) for key in roots | keys}) == 1


def test_cached_blocks_are_found_until_they_are_evicted() -> None:
    allocator = BlockAllocator(3)
    blocks = allocator.allocate(2)
    contents = [content(1), content(2)]
    for block, each in zip(blocks, contents, strict=True):
        allocator.register(block, each)
    allocator.free(blocks)
    assert (allocator.num_free, allocator.num_cached) == (3, 2)
    assert [allocator.find(each) for each in contents] == blocks
    assert allocator.allocate(1) == [2], "a free block goes before a cached one"
    assert allocator.take_evicted() == []
    assert allocator.allocate(1, "decode") == [blocks[1]], "the end of a table goes first"
    assert allocator.find(contents[1]) is None and allocator.find(contents[0]) == blocks[0]
    assert allocator.take_evicted() == [(blocks[1], contents[1].key)]
    assert allocator.evictions == {"decode": 1}
    assert [allocator.was_evicted(each.key) for each in contents] == [False, True]
    allocator.share([blocks[0]])
    assert allocator.num_free == 0
    allocator.check_integrity()


def test_a_block_of_the_same_key_and_other_tokens_is_not_found() -> None:
    allocator = BlockAllocator(1)
    blocks = allocator.allocate(1)
    allocator.register(blocks[0], BlockContent(b"one key", (1, 2)))
    assert allocator.find(BlockContent(b"one key", (1, 2))) == blocks[0]
    assert allocator.find(BlockContent(b"one key", (1, 3))) is None


def test_an_unregistered_block_is_free_at_once() -> None:
    allocator = BlockAllocator(2)
    blocks = allocator.allocate(1)
    allocator.register(blocks[0], content(1))
    allocator.unregister(blocks[0])
    assert allocator.find(content(1)) is None
    allocator.free(blocks)
    assert (allocator.num_cached, allocator.num_free) == (0, 2)
    allocator.check_integrity()


def test_what_is_evicted_is_remembered_for_as_many_evictions_as_there_are_blocks() -> None:
    allocator = BlockAllocator(2)
    for index in range(6):
        (block,) = allocator.allocate(1)
        allocator.register(block, content(index))
        allocator.free([block])
        allocator.check_integrity()
    gone = [allocator.was_evicted(content(index).key) for index in range(6)]
    assert gone == [False, False, True, True, False, False]


def test_ages_of_blocks_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(block_allocator.time, "monotonic", lambda: now_s[0])
    allocator = BlockAllocator(block_allocator._SAMPLED_EVERY)
    blocks = allocator.allocate(allocator.num_blocks)
    for block in blocks:
        allocator.register(block, content(block))
    now_s[0] = 103.0
    allocator.free(blocks)
    now_s[0] = 110.0
    allocator.share(blocks)
    allocator.free(blocks)
    now_s[0] = 117.0
    allocator.allocate(len(blocks))
    for histogram, age_s in ((allocator.lifetime_s, 17), (allocator.idle_before_eviction_s, 7)):
        assert (histogram.count, histogram.sum) == (1, age_s), "one of so many is timed"


class Allocations(RuleBasedStateMachine):
    """Against a model that knows who holds what, and what each block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(12)
        self.holders: list[list[int]] = []
        self.contents: dict[int, BlockContent] = {}  # by block; what can be found

    @rule(count=st.integers(0, 12))
    def allocate(self, count: int) -> None:
        if count > self.allocator.num_free:
            return
        held = {block for holder in self.holders for block in holder}
        taken = self.allocator.allocate(count)
        assert len(set(taken)) == count and not held.intersection(taken)
        self.holders.append(taken)
        evicted = self.allocator.take_evicted()
        for block, key in evicted:
            assert block in taken and self.contents.pop(block).key == key
        assert not self.contents.keys() & set(taken), "an eviction was not told"

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

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), token=st.integers(0, 5))
    def register(self, data: st.DataObject, token: int) -> None:
        block = data.draw(st.sampled_from([b for holder in self.holders for b in holder]))
        self.allocator.register(block, content(token))
        if block not in self.contents and content(token) not in self.contents.values():
            self.contents[block] = content(token)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([b for holder in self.holders for b in holder]))
        self.allocator.unregister(block)
        self.contents.pop(block, None)

    @rule(token=st.integers(0, 5))
    def revive(self, token: int) -> None:
        block = self.allocator.find(content(token))
        if block is not None:
            self.allocator.share([block])
            self.holders.append([block])

    @invariant()
    def counts_agree(self) -> None:
        held = {block for holder in self.holders for block in holder}
        assert self.allocator.num_used == len(held)
        assert self.allocator.num_free == 12 - len(held)
        assert self.allocator.num_cached == len(self.contents.keys() - held)
        found = {self.allocator.find(content(token)) for token in range(6)} - {None}
        assert found == self.contents.keys()
        kept = self.allocator.kept()
        assert dict(kept) == {block: each.key for block, each in self.contents.items()}
        assert len(kept) == len(self.contents)
        self.allocator.check_integrity()


Allocations.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
test_allocator_agrees_with_a_model = Allocations.TestCase
