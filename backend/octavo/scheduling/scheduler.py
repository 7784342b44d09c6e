"""Continuous batching: each step takes every decode, then chunks of prompts, in one budget."""

import bisect
import secrets
import time
from collections import Counter
from collections.abc import Iterable

from octavo.scheduling.block_allocator import NO_BLOCK, BlockAllocator, root_key
from octavo.scheduling.block_reuse import BlockReuse, Reuse
from octavo.scheduling.block_saving import BlockSaving
from octavo.scheduling.costs import RestoreCosts
from octavo.scheduling.counters import SchedulerCounters, report_preemption
from octavo.scheduling.preemption import Preemption, PreemptionMode
from octavo.scheduling.sequence import (
    UNKNOWN_TOKEN,
    FinishReason,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
    StepInFlight,
    StepPlan,
)
from octavo.scheduling.tiers import Tiers

StepOutput = tuple[Sequence, int, FinishReason | None]  # its token, and why it ends if it does

# As many waiting sequences may have blocks on their way from a tier before their turn.
_PREFETCHED = 4


class Scheduler:
    """Owns the waiting and running sequences and their blocks.

    Invariants: a sequence holds blocks only while it runs; a running sequence holds at least
    the blocks of its computed tokens that later ones attend to; nothing is admitted unless its
    whole known length fits, so that what is admitted can be prefilled without preempting anyone;
    a block that is shared is never written to.
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
        window: int | None = None,
        namespace: bytes = b"",
        tiers: Tiers | None = None,
        preemption: PreemptionMode = "auto",
    ) -> None:
        """window: the longest of a model whose layers all have one. namespace: what a block's
        content depends on besides tokens, at most 64 bytes."""
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
        self.costs = RestoreCosts(block_size, tiers)
        self._namespace = namespace
        self._window = window
        self._tiers = tiers
        self._reuse = BlockReuse(self.allocator, block_size, window, self.costs, tiers)
        self._preemption = Preemption(
            preemption, self.allocator, block_size, self.costs, has_tiers=tiers is not None
        )
        self._saving = BlockSaving(self.allocator, self.costs, tiers)
        self._private_salt = secrets.token_hex(16)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._saving.is_pending)

    def add(self, sequence: Sequence) -> None:
        sequence.root = root_key(self._namespace, self._salt(sequence))
        bisect.insort(self.waiting, sequence, key=_order)

    def finish(self, sequence: Sequence) -> None:
        """Takes a waiting or running sequence out; its blocks are free at once. Forks that still
        wait for its prompt go with it."""
        queue = self.running if sequence.is_running else self.waiting
        queue.remove(sequence)
        if sequence.loss is not None:
            report_preemption(sequence, "it ended before it came back")
            self._saving.end_loss(sequence.loss)
            sequence.loss = None
        if sequence.num_preemptions and not self._uses_prefix_cache(sequence):
            self._saving.forget(sequence.contents)
        self._release(sequence)
        for ended in (sequence, *sequence.forks):
            ended.status = SequenceStatus.FINISHED
        sequence.forks = []

    def schedule(self) -> StepPlan:
        """The next step. It computes nothing only if nothing waits or runs, or if all that could
        run waits for blocks from a tier."""
        plan = StepPlan([], [])
        self._schedule_decodes(plan)
        budget = self.max_num_batched_tokens - len(plan.decodes)
        for sequence in self.running:
            if budget == 0:
                break
            if not sequence.is_decoding:
                plan.prefills.append(self._chunk(sequence, budget))
                budget -= plan.prefills[-1].num_tokens
        while budget and (admitted := self._admit_next(plan)) is not None:
            plan.prefills.append(self._chunk(admitted, budget))
            budget -= plan.prefills[-1].num_tokens
        self.counters.prefill_chunks += len(plan.prefills)
        if self._tiers is not None:
            for sequence in self.waiting[:_PREFETCHED]:
                if sequence.awaits_token:
                    continue
                self._reuse.prefetch(sequence, shares=self._uses_prefix_cache(sequence))
        self._saving.schedule(plan)
        self.counters.saved_blocks += len(plan.block_saves)
        return plan

    def update(self, plan: StepPlan, sampled: Iterable[int]) -> list[StepOutput]:
        """Books a step that has run. `sampled` has one token for each of the plan's takers.
        Returns what each of those got."""
        tokens = iter(sampled)
        outputs = []
        for sequence, token_id in zip(plan.decodes, tokens, strict=False):
            self._compute(sequence, 1)
            outputs.append(self._append(sequence, token_id))
        assert len(outputs) == len(plan.decodes), "too few tokens"
        for chunk in plan.prefills:
            takers = chunk.takers
            self._compute(chunk.sequence, chunk.num_tokens)
            self._fork(chunk.sequence, takers[1:])
            outputs += [self._append(taker, next(tokens)) for taker in takers]
        assert next(tokens, None) is None, "too many tokens"
        return outputs

    def advance(self, plan: StepPlan) -> StepInFlight:
        """The first half of `update`, for a step that is being computed: the next one may be
        scheduled before its tokens are known. At most one step is ahead of what `settle` has been
        given."""
        step = StepInFlight([], [])
        for sequence in plan.decodes:
            self._advance(step, sequence, 1, [sequence])
        for chunk in plan.prefills:
            takers = chunk.takers
            self._advance(step, chunk.sequence, chunk.num_tokens, takers)
            self._fork(chunk.sequence, takers[1:])
        for taker, _ in step.takers:
            taker.token_ids.append(UNKNOWN_TOKEN)
        return step

    def settle(self, step: StepInFlight, sampled: Iterable[int]) -> list[StepOutput | None]:
        """The second half: the tokens of a step, one for each of its takers. Returns what each of
        those got: None where a sequence has ended meanwhile."""
        token_ids = list(sampled)
        assert len(token_ids) >= len(step.takers), "too few tokens"
        assert len(token_ids) <= len(step.takers), "too many tokens"
        for sequence, before, after in step.advanced:
            if sequence.is_running:
                self._fill(sequence, before, after)
        return [
            self._take(taker, index, token_id)
            for (taker, index), token_id in zip(step.takers, token_ids, strict=True)
        ]

    def check_integrity(self) -> None:
        """Asserts the invariants; cheap enough for every step of a test."""
        self.allocator.check_integrity()
        self._reuse.check_integrity()
        self._saving.check_integrity(self.waiting)
        held = [block for s in self.running for block in s.block_table[s.num_given_back :]]
        assert len(set(held)) == self.allocator.num_used
        for sequence in self.running:
            table, given_back = sequence.block_table, sequence.num_given_back
            assert sequence.status is SequenceStatus.RUNNING and sequence.loss is None
            assert len(table) * self.block_size >= sequence.num_computed_tokens
            assert (
                table[:given_back] == [NO_BLOCK] * given_back and NO_BLOCK not in table[given_back:]
            )
            for block in table[sequence.num_computed_tokens // self.block_size + 1 :]:
                assert not self.allocator.is_shared(block), block
        for sequence in self.waiting:
            assert sequence.status is SequenceStatus.WAITING and not sequence.block_table
        assert self._num_places_taken <= self.max_num_seqs
        assert self.waiting == sorted(self.waiting, key=_order)
        assert self.running == sorted(self.running, key=_order)

    def _schedule_decodes(self, plan: StepPlan) -> None:
        """One token for each decoding sequence; if blocks run out, others are preempted."""
        while True:
            decodes, growing, sharing = self._find_decodes()
            short = self._num_blocks_lacking(growing, sharing) - self.allocator.num_free
            if short <= 0:
                break
            self._preempt(self._preemption.victim(self.running), f"decodes lack {short} blocks")
        for sequence in sharing:
            if self.allocator.is_shared(sequence.block_table[-1]):
                plan.block_copies.append(self._copy_last_block(sequence))
        for sequence in growing:
            sequence.block_table += self.allocator.allocate(1, "decode")
        plan.decodes.extend(decodes)

    def _admit_next(self, plan: StepPlan) -> Sequence | None:
        """Moves the first waiting sequence that can run to the running ones. Those that wait for
        what another one computes, or for blocks from a tier, are overtaken, but not for ever; who
        waits for room is not."""
        overtaken: list[Sequence] = []
        for sequence in self.waiting:
            if sequence.awaits_token:
                return None  # just preempted; its token comes before the next step
            if self._num_places_taken + sequence.num_places > self.max_num_seqs:
                return None
            reuse = self._reuse.find(sequence, shares=self._uses_prefix_cache(sequence))
            if isinstance(reuse, Reuse):
                if not self._fits(sequence, reuse):
                    return None
                self._admit(sequence, reuse, plan)
                for each in overtaken:
                    each.num_passed_over += 1
                self.waiting.sort(key=_order)
                return sequence
            if reuse == "on its way":
                if sequence.goes_first:
                    return None
                overtaken.append(sequence)
        return None

    def _fits(self, sequence: Sequence, reuse: Reuse) -> bool:
        """Whether all its known tokens fit, and the watermark. With nothing running that is
        waived, or a prompt as long as the pool would wait for ever."""
        missing = self._blocks_missing(sequence) - len(reuse.table)
        spare = self.watermark_blocks if self.running else 0
        num_revived = sum(map(self.allocator.is_cached, reuse.table))
        return missing + num_revived + spare <= self.allocator.num_free

    def _admit(self, sequence: Sequence, reuse: Reuse, plan: StepPlan) -> None:
        self.waiting.remove(sequence)
        if sequence.loss is not None:
            self.counters.count_return(sequence, reuse, self.block_size)
        elif self._uses_prefix_cache(sequence):
            self.counters.count_prefix(sequence, reuse, self.block_size, self.allocator.was_evicted)
        missing = self._blocks_missing(sequence) - len(reuse.table)
        found = [block for block in reuse.table if block != NO_BLOCK]
        held_block_s = self.allocator.share(found)
        if sequence.loss is None:
            sequence.held_block_s = held_block_s
        new = self.allocator.allocate(missing, "admission")
        sequence.block_table = reuse.table + new
        sequence.num_given_back = len(reuse.table) - len(found)
        sequence.num_computed_tokens = reuse.num_tokens
        loaded = list(zip(new, reuse.rows, reuse.contents[len(reuse.table) :], strict=False))
        for block, row, content in loaded:
            plan.block_loads.append((block, row))
            self.allocator.register(block, content)
        self.counters.loaded_blocks += len(loaded)
        if reuse.num_tokens % self.block_size:
            # Its own last block, which it goes on to fill.
            self.allocator.unregister(sequence.block_table[reuse.num_blocks - 1])
        sequence.status = SequenceStatus.RUNNING
        bisect.insort(self.running, sequence, key=_order)
        if self._uses_prefix_cache(sequence):
            self._reuse.begin(sequence, reuse)
        self._reuse.forget(sequence)
        if sequence.loss is not None:
            self.costs.observe_wait(time.monotonic() - sequence.waiting_since_s)
            self._saving.end_loss(sequence.loss)
            sequence.loss = None

    def _salt(self, sequence: Sequence) -> str:
        """Shared within a tenant. Who does not use the cache has a salt of its own, so that only
        it finds what it leaves in a preemption."""
        if self._uses_prefix_cache(sequence):
            return f"tenant {sequence.params.tenant or ''}"
        return f"private {self._private_salt} {sequence.request_id}"

    def _uses_prefix_cache(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.params.cache

    def _advance(
        self, step: StepInFlight, sequence: Sequence, num_tokens: int, takers: list[Sequence]
    ) -> None:
        before = sequence.num_computed_tokens
        sequence.num_computed_tokens = before + num_tokens
        step.advanced.append((sequence, before, before + num_tokens))
        step.takers.extend((taker, before + num_tokens) for taker in takers)

    def _append(self, taker: Sequence, token_id: int) -> StepOutput:
        taker.token_ids.append(token_id)
        reason = taker.finish_reason_at(len(taker.token_ids) - 1)
        if reason is not None:
            self.finish(taker)
        return taker, token_id, reason

    def _take(self, taker: Sequence, index: int, token_id: int) -> StepOutput | None:
        if taker.status is SequenceStatus.FINISHED:
            return None
        taker.token_ids[index] = token_id
        reason = taker.finish_reason_at(index)
        if reason is not None:
            del taker.token_ids[index + 1 :]  # of a step in flight, which is wasted
            self.finish(taker)
        return taker, token_id, reason

    def _compute(self, sequence: Sequence, num_tokens: int) -> None:
        """Books `num_tokens` more tokens of a sequence."""
        before = sequence.num_computed_tokens
        sequence.num_computed_tokens = before + num_tokens
        self._fill(sequence, before, before + num_tokens)

    def _fill(self, sequence: Sequence, before: int, after: int) -> None:
        """The tokens from `before` to `after` of a sequence are in its blocks."""
        has_filled_a_block = after % self.block_size < after - before
        if has_filled_a_block and self._uses_prefix_cache(sequence):
            self._register_full_blocks(sequence, before, after)
        if self._window is not None:
            self._give_back(sequence, after)

    def _register_full_blocks(self, sequence: Sequence, before: int, after: int) -> None:
        """Lets later sequences find the blocks that these tokens have filled."""
        contents = sequence.contents_of(after, self.block_size)
        for index in range(before // self.block_size, len(contents)):
            block, content = sequence.block_table[index], contents[index]
            self.allocator.register(block, content)
            self._reuse.computed(content)
            is_prompt = (index + 1) * self.block_size <= sequence.num_prompt_tokens
            self._saving.computed(block, content, is_prompt=is_prompt)

    def _give_back(self, sequence: Sequence, num_computed: int) -> None:
        """Blocks that no token behind `num_computed` attends to."""
        first = self._reuse.first_needed(num_computed)
        behind = sequence.block_table[sequence.num_given_back : first]
        if behind:
            self.allocator.free(behind[::-1])  # here the beginning is what is needed least
            sequence.block_table[sequence.num_given_back : first] = [NO_BLOCK] * len(behind)
            sequence.num_given_back = first

    def _fork(self, sequence: Sequence, forks: list[Sequence]) -> None:
        """The prompt is computed: `forks` begin to run with the same blocks."""
        for fork in forks:
            sequence.forks.remove(fork)
            self.allocator.share(sequence.block_table[sequence.num_given_back :])
            fork.block_table = list(sequence.block_table)
            fork.num_given_back = sequence.num_given_back
            fork.root = sequence.root
            fork.contents = list(sequence.contents)
            fork.num_computed_tokens = sequence.num_computed_tokens
            fork.num_cached_tokens = sequence.num_cached_tokens
            fork.status = SequenceStatus.RUNNING
            bisect.insort(self.running, fork, key=_order)

    def _copy_last_block(self, sequence: Sequence) -> tuple[int, int]:
        """Gives the sequence a block of its own in place of its shared last one: (from, to)."""
        shared = sequence.block_table[-1]
        (own,) = self.allocator.allocate(1, "copy")
        self.allocator.free([shared])
        sequence.block_table[-1] = own
        self.counters.copied_blocks += 1
        return shared, own

    def _chunk(self, sequence: Sequence, budget: int) -> ScheduledSequence:
        return ScheduledSequence(sequence, min(sequence.num_pending_tokens, budget))

    def _preempt(self, victim: Sequence, cause: str) -> None:
        """Back to the waiting ones."""
        victim.loss = self._preemption.prepare(victim, cause)
        self.counters.preemptions[victim.loss.kind] += 1
        self._saving.begin_loss(victim.loss)
        self.running.remove(victim)
        self._release(victim)
        victim.status = SequenceStatus.WAITING
        victim.num_preemptions += 1
        victim.num_passed_over += 1
        victim.waiting_since_s = time.monotonic()
        bisect.insort(self.waiting, victim, key=_order)

    def _release(self, sequence: Sequence) -> None:
        self._reuse.end(sequence)
        self.allocator.free(sequence.block_table[sequence.num_given_back :])
        sequence.block_table = []
        sequence.num_given_back = 0
        sequence.num_computed_tokens = 0

    def _blocks_missing(self, sequence: Sequence) -> int:
        needed = -(-len(sequence.token_ids) // self.block_size)
        return needed - len(sequence.block_table)

    def _find_decodes(self) -> tuple[list[Sequence], list[Sequence], list[Sequence]]:
        """(all, of these those whose blocks are full, those whose next slot is in a block that
        others read)."""
        decodes: list[Sequence] = []
        growing: list[Sequence] = []
        sharing: list[Sequence] = []
        for sequence in self.running:
            if not sequence.is_decoding or len(sequence.token_ids) >= sequence.max_len:
                continue  # in prefill, or its last token is in flight
            decodes.append(sequence)
            table = sequence.block_table
            if sequence.num_computed_tokens == len(table) * self.block_size:
                growing.append(sequence)
            elif self.allocator.is_shared(table[-1]):
                sharing.append(sequence)
        return decodes, growing, sharing

    def _num_blocks_lacking(self, growing: list[Sequence], sharing: list[Sequence]) -> int:
        """Of those who write to one shared block the last needs no copy, if nobody else reads
        it."""
        if not sharing:
            return len(growing)
        writers = Counter(sequence.block_table[-1] for sequence in sharing)
        return len(growing) + sum(
            count - (count == self.allocator.num_references(block))
            for block, count in writers.items()
        )

    @property
    def _num_places_taken(self) -> int:
        return sum(sequence.num_places for sequence in self.running)


def _order(sequence: Sequence) -> tuple[bool, int, float, int, int]:
    return sequence.order
