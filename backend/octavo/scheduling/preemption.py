"""Who gives its blocks back when they run out, and how it gets them again."""

from collections.abc import Sequence as List
from typing import Literal

from octavo.scheduling.block_allocator import BlockAllocator, BlockContent, chain_key
from octavo.scheduling.costs import RestoreCosts
from octavo.scheduling.sequence import Loss, PreemptionKind, Sequence

PreemptionMode = Literal["auto", "swap", "recompute"]


class Preemption:
    """Chooses a victim and prepares its way back.

    A sequence that is swapped leaves its blocks in the pool as cached ones, each with a key, its
    unfinished last one included: they are evicted as others need them, and so saved to a tier, one
    by one. What is still there when the sequence comes back was never moved. A sequence that is
    recomputed leaves only what the prefix cache keeps anyway.
    """

    def __init__(
        self,
        mode: PreemptionMode,
        allocator: BlockAllocator,
        block_size: int,
        costs: RestoreCosts,
        *,
        has_tiers: bool,
    ) -> None:
        self._mode = mode if has_tiers else "recompute"
        self._allocator = allocator
        self._block_size = block_size
        self._costs = costs

    def victim(self, running: List[Sequence]) -> Sequence:
        """Of the lowest priority the one whose work is restored soonest, the last of equals. The
        first in order goes on, whatever it costs, so that there is progress; so do those that
        were passed over too often, while there are others."""
        others = running[1:] or running
        candidates = [sequence for sequence in others if not sequence.goes_first] or others[-1:]
        lowest = max(sequence.params.priority for sequence in candidates)
        least = [sequence for sequence in candidates if sequence.params.priority == lowest]
        return min(reversed(least), key=self._restore_cost)

    def prepare(self, victim: Sequence, cause: str) -> Loss:
        """Says how the victim comes back, and gives its blocks the keys for it."""
        num_tokens = victim.num_computed_tokens
        if self._kind(victim) == "recompute":
            return Loss("recompute", num_tokens, cause)
        contents = victim.contents_of(num_tokens, self._block_size)
        for block, content in zip(victim.block_table, contents, strict=False):
            self._allocator.register(block, content)
        last_block = self._register_last(victim, contents)
        swapped = [*contents, last_block] if last_block is not None else contents
        return Loss("swap", num_tokens, cause, tuple(c.key for c in swapped), last_block)

    def _kind(self, victim: Sequence) -> PreemptionKind:
        # What lies before given-back blocks cannot be looked up in a tier.
        if self._mode == "recompute" or victim.num_given_back > 0:
            return "recompute"
        num_tokens, num_blocks = self._own(victim)
        if self._mode == "swap" or self._costs.swap_pays(num_tokens, num_blocks):
            return "swap"
        return "recompute"

    def _restore_cost(self, sequence: Sequence) -> tuple[float, int]:
        num_tokens, num_blocks = self._own(sequence)
        return self._costs.restore_s(num_tokens, num_blocks), num_tokens

    def _own(self, sequence: Sequence) -> tuple[int, int]:
        """(tokens, blocks) of a sequence that go with it: others hold on to the rest."""
        table = sequence.block_table[sequence.num_given_back :]
        num_blocks = sum(not self._allocator.is_shared(block) for block in table)
        num_kept = (len(table) - num_blocks) * self._block_size
        return max(sequence.num_computed_tokens - num_kept, 0), num_blocks

    def _register_last(self, victim: Sequence, contents: list[BlockContent]) -> BlockContent | None:
        """The content of the last block, if it is not full and the sequence decodes; one in
        prefill loses that part."""
        num_full = len(contents)
        rest = tuple(victim.token_ids[num_full * self._block_size : victim.num_computed_tokens])
        if not rest or not victim.is_decoding:
            return None
        last = BlockContent(chain_key(contents[-1].key if contents else victim.root, rest), rest)
        block = victim.block_table[num_full]
        if not self._allocator.is_shared(block):
            self._allocator.register(block, last)
        return last
