"""The engine's time, measured part by part and booked to who caused it."""

import math
import time
from dataclasses import dataclass

from octavo.accounts import Account, Seconds, TenantLabels
from octavo.planner.attribution import Attribution, ModelWork, held_s
from octavo.scheduling.sequence import Sequence, StepPlan

_SETTLED_EVERY = 16  # steps, so that metrics are never far behind


class StepClock:
    """Splits the loop's time without a gap: each reading of the clock ends one part and begins
    the next. Steps are busy, waiting for work is idle, the rest of the loop is overhead.

    Idle begins, ends and is looked at under the engine's lock; all else is the engine's thread's.
    """

    def __init__(self) -> None:
        self.idle_s = 0.0
        self.overhead_s = 0.0
        self._mark_s = time.perf_counter()
        self._is_idle = False

    def start(self) -> None:
        """What was before belongs to nobody."""
        self._mark_s = time.perf_counter()

    def begin_step(self, began_s: float) -> None:
        """`began_s` before the last mark is when another step was still being computed."""
        if began_s > self._mark_s:
            self.overhead_s += began_s - self._mark_s
            self._mark_s = began_s

    def end_step(self) -> float:
        """What the step took."""
        return self._lap()

    def begin_idle(self) -> None:
        self.overhead_s += self._lap()
        self._is_idle = True

    def pass_idle(self) -> None:
        """Counts the idle time so far, if it is idle now."""
        if self._is_idle:
            self.idle_s += self._lap()

    def end_idle(self) -> None:
        self.pass_idle()
        self._is_idle = False

    def stop(self) -> None:
        self.overhead_s += self._lap()

    def _lap(self) -> float:
        before_s, self._mark_s = self._mark_s, time.perf_counter()
        return self._mark_s - before_s


class _Decodes:
    """Steps that decode the same sequences: a share is linear in the context, so that it is given
    to each sequence once for all of them."""

    def __init__(self, sequences: list[Sequence], contexts: list[int]) -> None:
        self.sequences = sequences
        self.contexts = contexts  # when the first of these steps began
        self.context_tokens = sum(contexts)
        self.has_stops = any(sequence.params.stop for sequence in sequences)
        self._flat_s = 0.0  # of each, whatever its context
        self._context_s = 0.0  # of each for a token of its context

    def add(self, flat_s: float, context_s: float) -> None:
        self._flat_s += flat_s
        self._context_s += context_s

    def settle(self) -> None:
        flat_s, context_s = self._flat_s, self._context_s
        for sequence, context in zip(self.sequences, self.contexts, strict=True):
            account, share_s = sequence.account, flat_s + context_s * context
            account.decode_s += share_s
            account.tenant.decode_s += share_s
        self._flat_s = self._context_s = 0.0


@dataclass(slots=True)
class Rows:
    """What is kept of a step until its time is shared out.

    num_grown: tokens that each context has grown by since `decodes` began
    chunks: of prompts, the tokens before each and its own number
    settles: a receipt of who ends by a stop string is written before the engine knows of the end
    """

    plan: StepPlan
    decodes: _Decodes
    num_grown: int
    chunks: list[tuple[int, int]]
    settles: bool
    elapsed_s: float = 0.0


class Ledger:
    """Shares each step's time out to its rows. The engine's thread writes."""

    def __init__(
        self, work: ModelWork, *, block_bytes: int, memory_bytes: int, labels: TenantLabels
    ) -> None:
        """memory_bytes: weights and KV memory."""
        self.tenants: dict[str, Seconds] = {}
        # What steps had to move and compute, and how their time divides by the learned rates.
        self.weight_bytes = self.kv_bytes = self.flops = 0.0
        self.memory_s = self.compute_s = 0.0
        self._work = work
        self._attribution = Attribution(work)
        self._decodes = _Decodes([], [])
        self._booked: list[Rows] = []
        self._block_bytes = block_bytes
        self._memory_bytes = memory_bytes
        self._labels = labels

    def open(self, account: Account, tenant: str) -> None:
        """A request has come in."""
        account.tenant = self.tenants.setdefault(self._labels.of(tenant), Seconds())

    def admit(self, sequence: Sequence, queue_s: float, saved_s: float) -> None:
        """A request runs for the first time. saved_s: to compute its cached tokens; infinite as
        long as nothing was measured."""
        account = sequence.account
        account.queue_s = queue_s
        account.cached_tokens = sequence.num_cached_tokens
        if not account.cached_tokens or math.isinf(saved_s):
            return
        kept_s = self.held_s(sequence.held_block_s)
        for each in (account, account.tenant):
            each.saved_s += saved_s
            each.held_s += kept_s

    def held_s(self, block_s: float) -> float:
        """block_s: seconds that blocks lay cached, all together."""
        return held_s(block_s, self._block_bytes, self._memory_bytes)

    def rows(self, plan: StepPlan) -> Rows:
        """Before the scheduler books the step: then its sequences have moved on."""
        decodes, known, num_grown = plan.decodes, self._decodes, 0
        if decodes != known.sequences or self._work.window is not None:
            reach = self._attribution.reach
            contexts = [reach(sequence.num_computed_tokens) for sequence in decodes]
            known = self._decodes = _Decodes(decodes, contexts)
        elif decodes:
            num_grown = decodes[0].num_computed_tokens - known.contexts[0]
        chunks, settles = [], known.has_stops
        for chunk in plan.prefills:
            chunks.append((chunk.sequence.num_computed_tokens, chunk.num_tokens))
            settles = settles or bool(chunk.sequence.params.stop)
        return Rows(plan, known, num_grown, chunks, settles)

    def book(self, rows: Rows, elapsed_s: float) -> None:
        """A step has run. Some are kept and shared out together: after a step's arithmetic the
        caches hold nothing of this, and it would take as long for one step as for several."""
        rows.elapsed_s = elapsed_s
        self._booked.append(rows)
        if rows.settles or len(self._booked) >= _SETTLED_EVERY:
            self.settle()

    def settle(self) -> None:
        """Brings all accounts up to date: before somebody's end is told."""
        decodes: _Decodes | None = None
        for rows in self._booked:
            if decodes is not None and decodes is not rows.decodes:
                decodes.settle()
            decodes = rows.decodes
            self._share_out(rows)
        if decodes is not None:
            decodes.settle()
        self._booked.clear()

    def _share_out(self, rows: Rows) -> None:
        decodes, elapsed_s, num_decodes = rows.decodes, rows.elapsed_s, len(rows.plan.decodes)
        context_tokens = decodes.context_tokens + rows.num_grown * num_decodes
        weights = self._attribution.weigh(num_decodes, context_tokens, rows.chunks)
        scale = weights.scale(elapsed_s)
        context_s = scale * weights.slope
        decodes.add(scale * weights.base + context_s * rows.num_grown, context_s)
        for chunk, weight in zip(rows.plan.prefills, weights.chunks, strict=True):
            account, share_s = chunk.sequence.account, weight * scale
            account.prefill_s += share_s
            account.tenant.prefill_s += share_s
        self._attribution.learn(weights, elapsed_s)
        self.weight_bytes += self._work.weight_bytes
        self.kv_bytes += weights.bytes - self._work.weight_bytes
        self.flops += weights.flops
        self.memory_s += weights.memory_share * elapsed_s
        self.compute_s += (1 - weights.memory_share) * elapsed_s
