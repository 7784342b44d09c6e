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


class Scheduler:
    """Owns the waiting and running sequences and their blocks.

    Invariants: a sequence holds blocks only while it runs; a running sequence holds at least
    the blocks of its computed tokens; nothing is admitted unless its whole known length fits,
    so that what is admitted can be prefilled without preempting anyone.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        watermark_ratio: float,
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs
        self.allocator = BlockAllocator(num_blocks)
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.watermark_blocks = max(1, int(watermark_ratio * num_blocks))
        self.waiting: list[Sequence] = []  # by Sequence.order
        self.running: list[Sequence] = []  # by Sequence.order
        self.counters = SchedulerCounters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=_order)

    def finish(self, sequence: Sequence) -> None:
        """Takes a waiting or running sequence out; its blocks are free at once."""
        queue = self.running if sequence.is_running else self.waiting
        queue.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.FINISHED

    def schedule(self) -> StepPlan:
        """The next step. Empty only if there is no work."""
        decodes = self._schedule_decodes()
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
        return StepPlan(decodes, prefills)

    def update(
        self, plan: StepPlan, sampled: Iterable[int]
    ) -> list[tuple[Sequence, int, FinishReason | None]]:
        """Books a step that has run. `sampled` has one token for each scheduled sequence that
        needs one, in the plan's order. Returns what each of those got."""
        outputs = []
        tokens = iter(sampled)
        for scheduled in plan:
            sequence = scheduled.sequence
            needs_sample = scheduled.needs_sample
            sequence.num_computed_tokens += scheduled.num_tokens
            if not needs_sample:
                continue
            token_id = next(tokens)
            sequence.token_ids.append(token_id)
            reason = sequence.finish_reason_after(token_id)
            if reason is not None:
                self.finish(sequence)
            outputs.append((sequence, token_id, reason))
        return outputs

    def check_integrity(self) -> None:
        """Asserts the invariants; cheap enough for every step of a test."""
        self.allocator.check_integrity()
        held = [block for sequence in self.running for block in sequence.block_table]
        assert len(set(held)) == self.allocator.num_used
        for sequence in self.running:
            assert sequence.status is SequenceStatus.RUNNING
            assert len(sequence.block_table) * self.block_size >= sequence.num_computed_tokens
        for sequence in self.waiting:
            assert sequence.status is SequenceStatus.WAITING and not sequence.block_table
        assert len(self.running) <= self.max_num_seqs
        assert self.waiting == sorted(self.waiting, key=_order)
        assert self.running == sorted(self.running, key=_order)

    def _schedule_decodes(self) -> list[ScheduledSequence]:
        """One token for each decoding sequence, best first; if blocks run out, the sequences
        that come last in order are preempted until the others have theirs."""
        decodes: list[ScheduledSequence] = []
        for sequence in list(self.running):
            if not sequence.is_running or not sequence.is_decoding:
                continue
            while self._blocks_missing(sequence) > self.allocator.num_free:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                sequence.block_table += self.allocator.allocate(self._blocks_missing(sequence))
                decodes.append(ScheduledSequence(sequence, 1))
        return decodes

    def _admit_next(self) -> Sequence | None:
        """Moves the first waiting sequence to the running ones, if all its known tokens and
        the watermark fit. With nothing running the watermark is waived, or a prompt as long
        as the pool would wait for ever."""
        if not self.waiting or len(self.running) >= self.max_num_seqs:
            return None
        sequence = self.waiting[0]
        missing = self._blocks_missing(sequence)
        spare = self.watermark_blocks if self.running else 0
        if missing + spare > self.allocator.num_free:
            return None
        del self.waiting[0]
        sequence.block_table = self.allocator.allocate(missing)
        sequence.status = SequenceStatus.RUNNING
        bisect.insort(self.running, sequence, key=_order)
        return sequence

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


def _order(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order
