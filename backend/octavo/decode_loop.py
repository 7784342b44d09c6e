"""A step after the other: plans it, has it computed, counts it and hands its tokens out.

All of it is the stepping thread's own. What other threads may ask for is `engine`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from octavo import spans
from octavo.accounts import TenantLabels
from octavo.config import EngineConfig
from octavo.errors import StepMemoryError
from octavo.execution.block_transfer import BlockTransfer
from octavo.execution.logprobs import TokenLogprobs
from octavo.execution.model_runner import ModelRunner, PendingStep
from octavo.execution.sampler import SampledTokens
from octavo.execution.step_trace import LiveTrace, description
from octavo.inbox import Inbox
from octavo.ledger import Ledger, Rows, StepClock
from octavo.models.sizes import decoder_shape
from octavo.planner.attribution import ModelWork
from octavo.receivers import Receivers
from octavo.scheduling.scheduler import Scheduler, StepOutput
from octavo.scheduling.sequence import (
    FinishReason,
    Sequence,
    SequenceStatus,
    StepInFlight,
    StepPlan,
)
from octavo.spans import span
from octavo.stats import EngineStats, Phase
from octavo.tiers import Tiers

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step that the runner computes while the next one is planned."""

    plan: StepPlan
    booked: StepInFlight
    pending: PendingStep
    rows: Rows
    began_s: float


class DecodeLoop:
    """Scheduler, runner and those who wait for tokens, and the books of what steps cost."""

    def __init__(
        self,
        config: EngineConfig,
        runner: ModelRunner,
        tiers: Tiers | None,
        namespace: bytes,
        inbox: Inbox,
    ) -> None:
        """namespace: what a block's bytes mean, where they outlive the engine or leave it"""
        window = _common_window(runner.model_config.sliding_windows)
        self.runner = runner
        self.scheduler = Scheduler(
            num_blocks=runner.kv_cache.num_blocks,
            block_size=runner.kv_cache.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            watermark_ratio=config.watermark_ratio,
            enable_prefix_caching=config.enable_prefix_caching,
            window=window,
            namespace=namespace,
            tiers=tiers,
            preemption=config.preemption,
        )
        self.receivers = Receivers()
        self.stats = EngineStats()
        self.clock = StepClock()
        self.tenant_labels = TenantLabels()
        self.ledger = _ledger(runner, window, self.tenant_labels)
        self._transfer = BlockTransfer(runner.kv_cache, tiers)
        self._inbox = inbox
        self._in_flight: _InFlight | None = None
        self._trace: LiveTrace | None = None
        if config.profile_steps is not None:
            self._trace = LiveTrace(
                *config.profile_steps, config.profile_folder, runner.library,
                on_device=runner.device.type == "cuda",
            )  # fmt: skip

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None

    @property
    def is_awaited(self) -> bool:
        """Whether a request has not ended, or a step that was launched."""
        return bool(self.receivers) or self._in_flight is not None

    def add(self, sequence: Sequence) -> None:
        """Of a request that `receivers` knows."""
        self.scheduler.add(sequence)
        self.ledger.open(sequence.account, sequence.params.tenant or "")

    def step(self) -> bool:
        """Computes one step, if there is work. Returns whether there was."""
        advance = self._step_ahead if self.runner.runs_ahead else self._step
        return advance() if self._trace is None else self._traced(advance)

    def end_request(
        self,
        request_id: int,
        reason: FinishReason,
        error: str | None = None,
        index: int | None = None,
    ) -> None:
        """Ends what has not ended yet of a request, or its sequence `index` alone."""
        for sequence in self.receivers.sequences(request_id):
            if index in (None, sequence.index):
                self._end(sequence, reason, error)

    def abandon(self, why: str) -> None:
        """Tells everybody that there will be no further step. The scheduler is left as it is."""
        for sequence in self.receivers.all_sequences():
            try:
                self._emit(sequence, None, None, FinishReason.ERROR, why)
            except Exception:  # a sink's fault must not cost the others their end
                log.exception("request %d did not take its end", sequence.request_id)

    def keep_blocks(self, timeout_s: float) -> int:
        """Sends to the tiers what the pool knows. Returns how many blocks they took."""
        return self._transfer.keep(self.scheduler.allocator.kept(), timeout_s)

    def finish_trace(self) -> None:
        """Writes what there is of one that more steps were asked for."""
        if self._trace is not None:
            self._trace.finish(self.stats.steps)

    def _traced(self, advance: Callable[[], bool]) -> bool:
        assert self._trace is not None
        worked = self._trace.step(self.stats.steps + 1, advance)
        if self._trace.is_over:
            self._trace = None
        return worked

    def _step(self) -> bool:
        """Plans a step and waits for it: the plain loop, which `_step_ahead` must equal."""
        if not self.scheduler.has_work:
            return False
        self.clock.begin_step(time.perf_counter())
        plan = self._plan()
        if len(plan) == 0:
            if self.scheduler.has_work:
                self._inbox.wait_for_blocks(self.clock)
            return True
        rows = self.ledger.rows(plan)  # while caches are warm of planning
        sampled = self._compute(plan, self.runner.run)
        if sampled is not None:
            with span("update"):
                outputs = self.scheduler.update(plan, sampled.token_ids)
            self._book(plan, rows, outputs, sampled, self.clock.end_step())
        return True

    def _step_ahead(self) -> bool:
        """Plans a step while the one before it is computed: its tokens are taken one step late.
        A sequence that turns out to have ended has been computed once too often by then."""
        flying = self._in_flight
        if flying is not None and any(taker.reads_output for taker, _ in flying.booked.takers):
            self._settle()
        if not self.scheduler.has_work:
            return self._settle()
        began_s = time.perf_counter()
        plan = self._plan()
        if len(plan) == 0:
            if not self._settle() and self.scheduler.has_work:
                self._inbox.wait_for_blocks(self.clock)
            return True
        pending = self._compute(plan, self.runner.launch)
        if pending is None:
            self._settle()
            return True
        rows = self.ledger.rows(plan)
        with span("update"):
            booked = self.scheduler.advance(plan)
        launched = _InFlight(plan, booked, pending, rows, began_s)
        self._settle()
        self._in_flight = launched
        return True

    def _settle(self) -> bool:
        """Takes what the step in flight gives. Returns whether there was one."""
        flying, self._in_flight = self._in_flight, None
        if flying is None:
            return False
        with span("wait"):
            sampled = flying.pending.result()
        with span("update"):
            outputs = self.scheduler.settle(flying.booked, sampled.token_ids)
        self.clock.begin_step(flying.began_s)
        self._book(flying.plan, flying.rows, outputs, sampled, self.clock.end_step())
        return True

    def _plan(self) -> StepPlan:
        """The next step, with the blocks moved that it needs elsewhere."""
        with span("schedule"):
            plan = self.scheduler.schedule()
        if spans.is_recording():
            with span(spans.DESCRIBE):
                spans.begin_step(description(plan))
        self._count_admitted(plan)
        self._transfer.run(plan)
        return plan

    def _compute(self, plan: StepPlan, compute: Callable[[StepPlan], _Result]) -> _Result | None:
        """None if the device has no memory for this step: then its costliest request ends with an
        error, and the others are planned again."""
        try:
            return compute(plan)
        except StepMemoryError as exc:
            victim = max(plan.prefills, key=lambda chunk: chunk.num_tokens, default=None)
            sequence = plan.decodes[-1] if victim is None else victim.sequence
            log.error("request %d is ended: %s", sequence.request_id, exc)
            self.end_request(sequence.request_id, FinishReason.ERROR, str(exc))
            return None

    def _book(
        self,
        plan: StepPlan,
        rows: Rows,
        outputs: Iterable[StepOutput | None],
        sampled: SampledTokens,
        elapsed_s: float,
    ) -> None:
        with span("count"):
            self.ledger.book(rows, elapsed_s)
            self.scheduler.costs.observe(plan, elapsed_s)
            self._count(plan, sampled.faults.count(None), elapsed_s)
        with span("hand out"):
            self._hand_out(outputs, sampled)

    def _hand_out(self, outputs: Iterable[StepOutput | None], sampled: SampledTokens) -> None:
        for prompt in sampled.prompts:
            self.receivers.keep_prompt_logprobs(prompt)
        for output, logprobs, fault in zip(outputs, sampled.logprobs, sampled.faults, strict=True):
            if output is None:  # it has ended meanwhile
                continue
            sequence, token_id, reason = output
            if fault is None:
                self._emit(sequence, token_id, logprobs, reason)
            else:
                self._end(sequence, FinishReason.ERROR, fault)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """Ends a sequence from outside the scheduler's own rules."""
        if sequence.status is not SequenceStatus.FINISHED:
            self.scheduler.finish(sequence)
        self._emit(sequence, None, None, reason, error)

    def _emit(
        self,
        sequence: Sequence,
        token_id: int | None,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
        error: str | None = None,
    ) -> None:
        if reason is not None:
            self.ledger.settle()
            if self.receivers.ends_with(sequence):
                self._inbox.count_end()
        self.receivers.tell(sequence, token_id, logprobs, reason, error)

    def _count_admitted(self, plan: StepPlan) -> None:
        now_s = time.monotonic()
        for sequence in (scheduled.sequence for scheduled in plan.prefills):
            if not sequence.is_counted:
                sequence.is_counted = True
                self.stats.prompt_tokens += sequence.num_prompt_tokens
                queue_s = now_s - sequence.arrival_s
                self.stats.queue_time_s.observe(queue_s)
                saved_s = self.scheduler.costs.recompute_s(sequence.num_cached_tokens)
                self.ledger.admit(sequence, queue_s, saved_s)

    def _count(self, plan: StepPlan, num_outputs: int, elapsed_s: float) -> None:
        phase: Phase = "mixed" if plan.decodes else "prefill"
        if not plan.prefills:
            phase = "decode"
        self.stats.steps += 1
        self.stats.busy_s[phase] += elapsed_s
        self.stats.generation_tokens += num_outputs


def _ledger(runner: ModelRunner, window: int | None, labels: TenantLabels) -> Ledger:
    kv_cache = runner.kv_cache
    work = ModelWork.of(
        decoder_shape(runner.model_config),
        weight_bytes=runner.model.step_weight_bytes,
        kv_token_bytes=kv_cache.block_bytes / kv_cache.block_size,
        window=window,
    )
    return Ledger(
        work,
        block_bytes=kv_cache.block_bytes,
        memory_bytes=runner.model.num_bytes + kv_cache.num_bytes,
        labels=labels,
    )


def _common_window(windows: tuple[int | None, ...]) -> int | None:
    """The longest of a model whose layers all have one: what lies behind it no layer reads."""
    bounded = [window for window in windows if window is not None]
    return max(bounded) if len(bounded) == len(windows) else None
