"""What of a waiting sequence exists already: in the pool, soon in the pool, or in a tier."""

import time
from dataclasses import dataclass
from typing import Literal

from octavo.scheduling.block_allocator import NO_BLOCK, BlockAllocator, BlockContent, BlockKey
from octavo.scheduling.costs import RestoreCosts
from octavo.scheduling.sequence import Sequence
from octavo.scheduling.tiers import AwaitedBlocks, Row, Tiers

# How long a sequence waits for blocks from a tier beyond the time that they should take.
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Reuse:
    """The beginning of a sequence that need not be computed.

    table: blocks of the pool, NO_BLOCK where no later token attends to
    rows: what a tier held of the blocks after these; sources: which one
    contents: of all of them
    """

    table: list[int]
    rows: list[Row]
    sources: list[str]
    contents: list[BlockContent]
    num_promised: int = 0  # blocks that a tier was known to hold

    @property
    def num_blocks(self) -> int:
        return len(self.table) + len(self.rows)

    @property
    def num_undelivered(self) -> int:
        """Blocks that a tier was known to hold and did not give."""
        return max(self.num_promised - len(self.rows), 0)

    @property
    def num_tokens(self) -> int:
        return sum(len(content.token_ids) for content in self.contents[: self.num_blocks])


Wait = Literal["computed by another", "on its way"]


class BlockReuse:
    """Looks a sequence's contents up, in the cheapest place first.

    Sequences that begin alike and arrive together compute their beginning once: while a running
    one is about to fill the block that is the next one's next, that waits.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        block_size: int,
        window: int | None,
        costs: RestoreCosts,
        tiers: Tiers | None,
    ) -> None:
        self._allocator = allocator
        self._block_size = block_size
        self._window = window
        self._costs = costs
        self._tiers = tiers
        self._in_flight: dict[BlockKey, Sequence] = {}  # who will have computed it

    def find(self, sequence: Sequence, *, shares: bool) -> Reuse | Wait:
        """`shares`: the sequence uses the prefix cache. Else only what it has left itself in a
        preemption is its own."""
        contents = self._contents(sequence, shares=shares)
        table = self._in_pool(contents)
        num_found = len(table)
        if num_found < len(contents):
            if contents[num_found].key in self._in_flight:
                return "computed by another"
            if self._tiers is not None and NO_BLOCK not in table:
                return self._with_tiers(sequence, contents, table, self._tiers)
        return Reuse(table, [], [], contents)

    def prefetch(self, sequence: Sequence, *, shares: bool) -> None:
        """Lets tiers begin to read what a sequence will want when its turn comes."""
        if self._tiers is not None and sequence.awaited is None:
            self.find(sequence, shares=shares)

    def begin(self, sequence: Sequence, reuse: Reuse) -> None:
        """The sequence runs, and will compute what was not found."""
        for content in reuse.contents[reuse.num_blocks :]:
            if len(content.token_ids) == self._block_size:
                self._in_flight.setdefault(content.key, sequence)

    def computed(self, content: BlockContent) -> None:
        self._in_flight.pop(content.key, None)

    def end(self, sequence: Sequence) -> None:
        """The sequence will compute nothing more, and wants nothing more."""
        for content in sequence.contents if self._in_flight else ():
            if self._in_flight.get(content.key) is sequence:
                del self._in_flight[content.key]
        self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        if sequence.awaited is not None:
            sequence.awaited.fetch.cancel()
            sequence.awaited = None

    def check_integrity(self) -> None:
        """Asserts that whoever is waited for runs."""
        assert all(sequence.is_running for sequence in self._in_flight.values())

    def first_needed(self, num_tokens: int) -> int:
        """The first block that a token at position `num_tokens` or a later one attends to."""
        if self._window is None:
            return 0
        return max(num_tokens - self._window + 1, 0) // self._block_size

    def _contents(self, sequence: Sequence, *, shares: bool) -> list[BlockContent]:
        """Of all blocks that could be reused. The last token is always computed, for its logits,
        as are all of which log probabilities are wanted."""
        swapped = sequence.loss is not None and sequence.loss.kind == "swap"
        if sequence.wants_prompt_logprobs or not (shares or swapped):
            return []
        contents = sequence.contents_of(len(sequence.token_ids) - 1, self._block_size)
        if sequence.loss is not None and sequence.loss.last_block is not None:
            contents.append(sequence.loss.last_block)
        return contents

    def _in_pool(self, contents: list[BlockContent]) -> list[int]:
        """The block table of the longest beginning whose needed blocks are all there."""
        blocks: list[int] = []
        run = num_tokens = 0
        first = longest = 0  # what is needed of the best beginning, and where it ends
        for content in contents:
            block = self._allocator.find(content)
            blocks.append(NO_BLOCK if block is None else block)
            run = 0 if block is None else run + 1
            num_tokens += len(content.token_ids)
            needed = self.first_needed(num_tokens)
            if run >= max(len(blocks) - needed, 1):
                first, longest = needed, len(blocks)
            elif self._window is None:
                break
        return [NO_BLOCK] * first + blocks[first:longest]

    def _with_tiers(
        self, sequence: Sequence, contents: list[BlockContent], table: list[int], tiers: Tiers
    ) -> Reuse | Wait:
        keys = tuple(content.key for content in contents[len(table) :])
        awaited = sequence.awaited
        if awaited is not None and awaited.fetch.is_done and keys[0] not in awaited.fetch.keys:
            # Meanwhile the pool has lost blocks before those, so that they lead nowhere.
            self.forget(sequence)
            awaited = None
        if awaited is None:
            num_blocks = tiers.may_hold(keys)
            swapped = sequence.loss is not None and sequence.loss.kind == "swap"
            if num_blocks == 0 or not (swapped or self._costs.fetch_pays(num_blocks)):
                return Reuse(table, [], [], contents)
            promised = min(tiers.held(keys), num_blocks)
            give_up_at_s = time.monotonic() + 2 * tiers.fetch_s(num_blocks) + _PATIENCE_S
            awaited = AwaitedBlocks(tiers.fetch(keys[:num_blocks]), promised, give_up_at_s)
            sequence.awaited = awaited
        fetch = awaited.fetch
        if not fetch.is_done:
            if time.monotonic() < awaited.give_up_at_s:
                return "on its way"
            return Reuse(table, [], [], contents, awaited.num_promised)
        # What the pool has got itself in the meantime is not taken twice.
        skipped = fetch.keys.index(keys[0])
        rows, sources = list(fetch.rows[skipped:]), fetch.sources[skipped:]
        return Reuse(table, rows, sources, contents, awaited.num_promised - skipped)
