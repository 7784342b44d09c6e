"""Continuous batching: each step takes every decode, then chunks of prompts, in one budget."""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from octavo.scheduling.block_allocator import BlockAllocator
from octavo.scheduling.sequence import (
    FinishReason,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
    StepPlan,
)


@dataclass(slots=True)
class SchedulerCounters:
    """Running totals."""

    preemptions: int = 0
    recomputed_tokens: int = 0
    prefill_chunks: int = 0
    copied_blocks: int = 0
    # Of prompts that began to run with the prefix cache on. A sequence's own recompute counts in
    # neither.
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0


class Scheduler:
    """Owns the waiting and running sequences and their blocks.

    Invariants: a sequence holds blocks only while it runs; a running sequence holds at least
    the blocks of its computed tokens; nothing is admitted unless its whole known length fits,
    so that what is admitted can be prefilled without preempting anyone; a block that is shared
    is never written to.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        watermark_ratio: float,
        enable_prefix_caching: bool = True,
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs
        self.allocator = BlockAllocator(num_blocks)
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.watermark_blocks = max(1, int(watermark_ratio * num_blocks))
        self.enable_prefix_caching = enable_prefix_caching
        self.waiting: list[Sequence] = []  # by Sequence.order
        self.running: list[Sequence] = []  # by Sequence.order
        self.counters = SchedulerCounters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=_order)

    def finish(self, sequence: Sequence) -> None:
        """Takes a waiting or running sequence out; its blocks are free at once. Forks that still
        wait for its prompt go with it."""
        queue = self.running if sequence.is_running else self.waiting
        queue.remove(sequence)
        self._release(sequence)
        for ended in (sequence, *sequence.forks):
            ended.status = SequenceStatus.FINISHED
        sequence.forks = []

    def schedule(self) -> StepPlan:
        """The next step. Empty only if there is no work."""
        decodes, block_copies = self._schedule_decodes()
        budget = self.max_num_batched_tokens - len(decodes)
        prefills: list[ScheduledSequence] = []
        for sequence in self.running:
            if budget == 0:
                break
            if not sequence.is_decoding:
                prefills.append(self._chunk(sequence, budget))
                budget -= prefills[-1].num_tokens
        while budget and (admitted := self._admit_next()) is not None:
            prefills.append(self._chunk(admitted, budget))
            budget -= prefills[-1].num_tokens
        self.counters.prefill_chunks += len(prefills)
        return StepPlan(decodes, prefills, block_copies)

    def update(
        self, plan: StepPlan, sampled: Iterable[int]
    ) -> list[tuple[Sequence, int, FinishReason | None]]:
        """Books a step that has run. `sampled` has one token for each of the plan's takers.
        Returns what each of those got."""
        outputs = []
        tokens = iter(sampled)
        for scheduled in plan:
            sequence, takers = scheduled.sequence, scheduled.takers
            sequence.num_computed_tokens += scheduled.num_tokens
            self._register_full_blocks(sequence, scheduled.num_tokens)
            self._fork(sequence, takers[1:])
            for taker in takers:
                token_id = next(tokens)
                taker.token_ids.append(token_id)
                reason = taker.finish_reason_after(token_id)
                if reason is not None:
                    self.finish(taker)
                outputs.append((taker, token_id, reason))
        return outputs

    def check_integrity(self) -> None:
        """Asserts the invariants; cheap enough for every step of a test."""
        self.allocator.check_integrity()
        held = [block for sequence in self.running for block in sequence.block_table]
        assert len(set(held)) == self.allocator.num_used
        for sequence in self.running:
            assert sequence.status is SequenceStatus.RUNNING
            assert len(sequence.block_table) * self.block_size >= sequence.num_computed_tokens
            for block in sequence.block_table[
                sequence.num_computed_tokens // self.block_size + 1 :
            ]:
                assert not self.allocator.is_shared(block), block
        for sequence in self.waiting:
            assert sequence.status is SequenceStatus.WAITING and not sequence.block_table
        assert self._num_places_taken <= self.max_num_seqs
        assert self.waiting == sorted(self.waiting, key=_order)
        assert self.running == sorted(self.running, key=_order)

    def _schedule_decodes(self) -> tuple[list[ScheduledSequence], list[tuple[int, int]]]:
        """One token for each decoding sequence, best first; if blocks run out, the sequences
        that come last in order are preempted until the others have theirs."""
        decodes: list[ScheduledSequence] = []
        block_copies: list[tuple[int, int]] = []
        for sequence in list(self.running):
            if not sequence.is_running or not sequence.is_decoding:
                continue
            while self._blocks_to_write(sequence) > self.allocator.num_free:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                if self._must_copy(sequence):
                    block_copies.append(self._copy_last_block(sequence))
                sequence.block_table += self.allocator.allocate(self._blocks_missing(sequence))
                decodes.append(ScheduledSequence(sequence, 1))
        return decodes, block_copies

    def _admit_next(self) -> Sequence | None:
        """Moves the first waiting sequence to the running ones, if all its known tokens and
        the watermark fit. With nothing running the watermark is waived, or a prompt as long
        as the pool would wait for ever."""
        if not self.waiting:
            return None
        sequence = self.waiting[0]
        if self._num_places_taken + sequence.num_places > self.max_num_seqs:
            return None
        found = self._find_prefix(sequence)
        missing = self._blocks_missing(sequence) - len(found)
        spare = self.watermark_blocks if self.running else 0
        num_revived = sum(map(self.allocator.is_cached, found))
        if missing + num_revived + spare > self.allocator.num_free:
            return None
        del self.waiting[0]
        self.allocator.share(found)
        sequence.block_table = found + self.allocator.allocate(missing)
        sequence.num_computed_tokens = len(found) * self.block_size
        sequence.status = SequenceStatus.RUNNING
        bisect.insort(self.running, sequence, key=_order)
        if sequence.num_preemptions == 0 and self._uses_prefix_cache(sequence):
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.counters.prefix_query_tokens += sequence.num_prompt_tokens
            self.counters.prefix_hit_tokens += sequence.num_cached_tokens
        return sequence

    def _uses_prefix_cache(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.params.cache

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold the beginning of the sequence. Its last token is always
        computed, for its logits, as are all of which log probabilities are wanted."""
        if not self._uses_prefix_cache(sequence) or sequence.wants_prompt_logprobs:
            return []
        num_tokens = len(sequence.token_ids) - 1
        keys = sequence.keys_of_full_blocks(num_tokens, self.block_size)
        return list(self.allocator.find(keys))

    def _register_full_blocks(self, sequence: Sequence, num_tokens: int) -> None:
        """Lets later sequences find the blocks that the last `num_tokens` tokens have filled."""
        if not self._uses_prefix_cache(sequence):
            return
        computed = sequence.num_computed_tokens
        first = (computed - num_tokens) // self.block_size
        if first == computed // self.block_size:
            return
        keys = sequence.keys_of_full_blocks(computed, self.block_size)
        for block, key in zip(sequence.block_table[first:], keys[first:], strict=False):
            self.allocator.register(block, key)

    def _fork(self, sequence: Sequence, forks: list[Sequence]) -> None:
        """The prompt is computed: `forks` begin to run with the same blocks."""
        for fork in forks:
            sequence.forks.remove(fork)
            self.allocator.share(sequence.block_table)
            fork.block_table = list(sequence.block_table)
            fork.block_keys = list(sequence.block_keys)
            fork.num_computed_tokens = sequence.num_computed_tokens
            fork.num_cached_tokens = sequence.num_cached_tokens
            fork.status = SequenceStatus.RUNNING
            bisect.insort(self.running, fork, key=_order)

    def _must_copy(self, sequence: Sequence) -> bool:
        """Whether the next token's slot is in a block that others read too."""
        index = (len(sequence.token_ids) - 1) // self.block_size
        table = sequence.block_table
        return index < len(table) and self.allocator.is_shared(table[index])

    def _copy_last_block(self, sequence: Sequence) -> tuple[int, int]:
        """Gives the sequence a block of its own in place of its shared last one: (from, to)."""
        shared = sequence.block_table[-1]
        (own,) = self.allocator.allocate(1)
        self.allocator.free([shared])
        sequence.block_table[-1] = own
        self.counters.copied_blocks += 1
        return shared, own

    def _chunk(self, sequence: Sequence, budget: int) -> ScheduledSequence:
        return ScheduledSequence(sequence, min(sequence.num_pending_tokens, budget))

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the waiting ones, to be recomputed from its tokens."""
        self.counters.preemptions += 1
        self.counters.recomputed_tokens += sequence.num_computed_tokens
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.allocator.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def _blocks_missing(self, sequence: Sequence) -> int:
        needed = -(-len(sequence.token_ids) // self.block_size)
        return needed - len(sequence.block_table)

    def _blocks_to_write(self, sequence: Sequence) -> int:
        """Blocks that a decode of the sequence takes from the pool."""
        return self._blocks_missing(sequence) + self._must_copy(sequence)

    @property
    def _num_places_taken(self) -> int:
        return sum(sequence.num_places for sequence in self.running)


def _order(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.order
