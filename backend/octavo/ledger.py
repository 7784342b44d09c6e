"""The engine's time, measured part by part and booked to who caused it."""

import math
import time
from dataclasses import dataclass

from octavo.accounts import Account, Seconds, TenantLabels
from octavo.planner.attribution import Attribution, ModelWork, StepWeights, held_s
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
    """Steps that decode the same sequences, summed up until each gets its share: what that takes
    for every row would else be taken from every token."""

    def __init__(self, sequences: list[Sequence], contexts: list[int]) -> None:
        self.sequences = sequences
        self.contexts = contexts  # when the first of these steps began
        self.context_tokens = sum(contexts)
        # A receipt of who ends by a stop string is written before the engine knows of the end.
        self.settles_each_step = any(sequence.params.stop for sequence in sequences)
        self.num_steps = 0
        self._flat_s = 0.0  # of each, whatever its context
        self._context_s = 0.0  # of each for a token of its context

    def add(self, flat_s: float, context_s: float) -> None:
        self.num_steps += 1
        self._flat_s += flat_s
        self._context_s += context_s

    def settle(self) -> None:
        if self.num_steps == 0:
            return
        flat_s, context_s = self._flat_s, self._context_s
        for sequence, context in zip(self.sequences, self.contexts, strict=True):
            account, share_s = sequence.account, flat_s + context_s * context
            account.decode_s += share_s
            account.tenant.decode_s += share_s
        self.num_steps = 0
        self._flat_s = self._context_s = 0.0


@dataclass(slots=True)
class Weighed:
    """A step before it is known how long it took."""

    weights: StepWeights
    decodes: _Decodes
    num_grown: int  # tokens that each context has grown by since `decodes` began


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

    def weigh(self, plan: StepPlan) -> Weighed:
        """Before the scheduler books the step: then its sequences have moved on."""
        decodes, known = plan.decodes, self._decodes
        if decodes != known.sequences or self._work.window is not None:
            known.settle()
            reach = self._attribution.reach
            contexts = [reach(sequence.num_computed_tokens) for sequence in decodes]
            known = self._decodes = _Decodes(decodes, contexts)
            num_grown = 0
        else:
            num_grown = decodes[0].num_computed_tokens - known.contexts[0] if decodes else 0
        chunks = [(chunk.sequence.num_computed_tokens, chunk.num_tokens) for chunk in plan.prefills]
        context_tokens = known.context_tokens + num_grown * len(decodes)
        weights = self._attribution.weigh(len(decodes), context_tokens, chunks)
        return Weighed(weights, known, num_grown)

    def book(self, plan: StepPlan, weighed: Weighed, elapsed_s: float) -> None:
        weights, decodes = weighed.weights, weighed.decodes
        scale = weights.scale(elapsed_s)
        context_s = scale * weights.slope
        decodes.add(scale * weights.base + context_s * weighed.num_grown, context_s)
        if (
            decodes.settles_each_step
            or decodes.num_steps >= _SETTLED_EVERY
            or decodes is not self._decodes  # a step that was still being computed
        ):
            decodes.settle()
        for chunk, weight in zip(plan.prefills, weights.chunks, strict=True):
            account, share_s = chunk.sequence.account, weight * scale
            account.prefill_s += share_s
            account.tenant.prefill_s += share_s
        self._attribution.learn(weights, elapsed_s)
        weight_bytes = self._work.weight_bytes
        self.weight_bytes += weight_bytes
        self.kv_bytes += weights.bytes - weight_bytes
        self.flops += weights.flops
        self.memory_s += weights.memory_share * elapsed_s
        self.compute_s += (1 - weights.memory_share) * elapsed_s

    def settle(self) -> None:
        """Brings all accounts up to date: before somebody's end is told."""
        self._decodes.settle()
