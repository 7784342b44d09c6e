"""What of the pool's contents goes to the tiers, and what is of use to nobody any more."""

from collections import Counter
from collections.abc import Iterable

from octavo.scheduling.block_allocator import BlockAllocator, BlockContent, BlockKey
from octavo.scheduling.costs import RestoreCosts
from octavo.scheduling.sequence import Loss, Sequence, StepPlan
from octavo.scheduling.tiers import Tiers


class BlockSaving:
    """Decides for each block that is evicted, and for each block of a prompt."""

    def __init__(self, allocator: BlockAllocator, costs: RestoreCosts, tiers: Tiers | None) -> None:
        self._allocator = allocator
        self._costs = costs
        self._tiers = tiers
        self._wanted: Counter[BlockKey] = Counter()  # what swapped sequences wait for
        # Blocks of prompts that go to the tiers that outlive the engine, with the next plan.
        self._written_through: list[tuple[int, BlockKey]] = []

    @property
    def is_pending(self) -> bool:
        return bool(self._written_through)

    def computed(self, block: int, content: BlockContent, *, is_prompt: bool) -> None:
        if is_prompt and self._tiers is not None and self._tiers.outlive_engine:
            self._written_through.append((block, content.key))

    def begin_loss(self, loss: Loss) -> None:
        """A sequence was preempted: what is to be swapped of it is saved when it is evicted."""
        self._wanted.update(loss.keys)

    def end_loss(self, loss: Loss) -> None:
        """The sequence runs again, or has ended."""
        self._wanted.subtract(loss.keys)
        for key in loss.keys:
            if self._wanted[key] == 0:
                del self._wanted[key]
        if loss.last_block is not None:
            self.forget([loss.last_block])  # it is written to, or never asked for again

    def forget(self, contents: list[BlockContent]) -> None:
        """Nobody will look for these, but for those that a swapped sequence waits for."""
        useless = [content for content in contents if content.key not in self._wanted]
        for content in useless:
            self._allocator.forget(content)
        if self._tiers is not None:
            self._tiers.discard([content.key for content in useless])

    def schedule(self, plan: StepPlan) -> None:
        """Of evicted contents those are saved that a swapped sequence waits for, and of the others
        those that it would cost more to compute again."""
        for block, key in self._allocator.take_evicted():
            if self._tiers is None or self._tiers.held([key]):
                continue
            if key in self._wanted or self._costs.saving_pays:
                plan.block_saves.append((block, key))
        plan.block_writes.extend(self._written_through)
        self._written_through.clear()

    def check_integrity(self, waiting: Iterable[Sequence]) -> None:
        """Asserts that what is wanted is what the losses of the waiting say."""
        losses = [sequence.loss for sequence in waiting if sequence.loss is not None]
        assert self._wanted == Counter(key for loss in losses for key in loss.keys)
