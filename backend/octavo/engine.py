"""The decode loop: takes requests in, steps the model, hands tokens out.

It knows token ids only; text is the serving layer's. One thread steps (see `start`); any
thread may submit and cancel. Without `start` the caller steps, as tests and benchmarks do.
"""

import heapq
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TypeVar

from octavo import spans
from octavo.accounts import TenantLabels
from octavo.config import EngineConfig
from octavo.errors import EngineDeadError, StepMemoryError
from octavo.execution.block_transfer import BlockTransfer
from octavo.execution.logprobs import TokenLogprobs
from octavo.execution.model_runner import ModelRunner, PendingStep
from octavo.execution.sampler import SampledTokens
from octavo.execution.step_trace import LiveTrace, description
from octavo.gauges import EngineGauges
from octavo.generation import (
    GenerationRequest,
    GenerationResult,
    Sink,
)
from octavo.ledger import Ledger, Rows, StepClock
from octavo.models.sizes import decoder_shape
from octavo.planner.attribution import ModelWork
from octavo.quality.served import admit
from octavo.receivers import Receivers
from octavo.request_limits import RequestLimits
from octavo.sampling_params import SamplingParams
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
from octavo.tiers import open_tiers

log = logging.getLogger(__name__)

# Sequences that wait for a tier have a deadline, which nothing else would wake the engine for.
_TIER_POLL_S = 0.05
_KEEP_TIMEOUT_S = 5.0

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step that the runner computes while the next one is planned."""

    plan: StepPlan
    booked: StepInFlight
    pending: PendingStep
    rows: Rows
    began_s: float


class Engine:
    """Continuous batching over one model. Each of an accepted request's n sequences gets exactly
    one output with a finish reason, whatever happens."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads the model. Raises ConfigError, also if its quality is to be shown and is not."""
        self.config = config
        self.runner = _load_runner(config)
        self.quality = admit(config, self.runner)
        self.loaded_at_s = time.time()
        self._changed = threading.Condition()
        self._has_arrived = False  # guarded by _changed: blocks from a tier
        # What a block's bytes mean: only where they outlive the engine or leave it.
        namespace = self.runner.kv_namespace if config.kv_tiers.outlive_engine else b""
        self.tiers = open_tiers(
            config.kv_tiers,
            block_bytes=self.runner.kv_cache.block_bytes,
            namespace=namespace,
            on_arrival=self._on_arrival,
        )
        self._transfer = BlockTransfer(self.runner.kv_cache, self.tiers)
        window = _common_window(self.runner.model_config.sliding_windows)
        self.scheduler = Scheduler(
            num_blocks=self.runner.kv_cache.num_blocks,
            block_size=self.runner.kv_cache.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            watermark_ratio=config.watermark_ratio,
            enable_prefix_caching=config.enable_prefix_caching,
            window=window,
            namespace=namespace,
            tiers=self.tiers,
            preemption=config.preemption,
        )
        self.stats = EngineStats()
        self.clock = StepClock()
        self.tenant_labels = TenantLabels()
        self.ledger = _ledger(self.runner, window, self.tenant_labels)
        # Called by the engine's own thread after each step: outputs can be handed on together,
        # which wakes a receiver once a step and not once a sequence.
        self.after_step: Callable[[], None] = lambda: None
        self.max_model_len = self.runner.max_model_len
        self.vocab_size = self.runner.model_config.vocab_size
        self._limits = RequestLimits(
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=self.runner.model_config.eos_token_ids,
        )
        # Guarded by _changed.
        self._inbox: deque[tuple[Sequence, Sink]] = deque()
        self._cancelled: dict[tuple[int, int | None], FinishReason] = {}
        self._num_admitted = 0
        self._closed: str | None = None  # why nothing is accepted any more
        # The stepping thread's own.
        self._receivers = Receivers()
        self._deadlines: list[tuple[float, int]] = []
        self._in_flight: _InFlight | None = None
        self._thread: threading.Thread | None = None
        self._has_failed = False
        self._trace: LiveTrace | None = None
        if config.profile_steps is not None:
            self._trace = LiveTrace(
                *config.profile_steps, config.profile_folder, self.runner.library,
                on_device=self.runner.device.type == "cuda",
            )  # fmt: skip

    # Any thread.

    def submit(self, request: GenerationRequest) -> None:
        """Accepts a request. Raises InvalidRequestError if it can never run, EngineDeadError
        after a fault or a shutdown."""
        self._limits.check(request)
        params = request.params
        if params.seed is None and not params.is_greedy:
            params = replace(params, seed=secrets.randbits(64))
        sequence = Sequence(
            request_id=request.request_id,
            token_ids=list(request.prompt_token_ids),
            params=params,
            arrival_s=request.arrival_s,
            max_len=len(request.prompt_token_ids) + params.max_tokens,
            stop_token_ids=self._limits.stop_token_ids(params),
            bad_words=request.bad_words,
        )
        for index in range(1, params.n):
            sequence.add_fork(replace(params, seed=_seed_of_fork(params.seed, index)))
        with self._changed:
            if self._closed is not None:
                raise EngineDeadError(self._closed)
            self._num_admitted += 1
            self._inbox.append((sequence, request.sink))
            self._changed.notify_all()

    def cancel(
        self,
        request_id: int,
        reason: FinishReason = FinishReason.CANCELLED,
        index: int | None = None,
    ) -> None:
        """Ends a request, or one of its sequences, before the next step; what has ended is left
        alone."""
        with self._changed:
            self._cancelled[request_id, index] = reason
            self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Whether another request may be submitted now, waiting at most `timeout_s` for it.
        True once the engine is closed, so that nobody waits for what submit will refuse."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (
                    self._num_admitted < self.config.max_num_admitted or self._closed is not None
                ),
                timeout_s,
            )

    @property
    def gauges(self) -> EngineGauges:
        """The state now. It is looked at a few times a second and not told after each step, which
        would take time from every token; in the middle of a step its numbers may be one step
        apart."""
        if self._has_failed:
            return EngineGauges(total_blocks=self.scheduler.allocator.num_blocks)
        return EngineGauges.of(self.scheduler)

    @property
    def held_in_vain_s(self) -> float:
        """What it took to keep cached blocks that were evicted before anybody found them."""
        return self.ledger.held_s(self.scheduler.allocator.held_in_vain_block_s)

    def count_idle(self) -> None:
        """Brings the idle time up to date, which else is booked when it ends."""
        with self._changed:
            self.clock.pass_idle()

    @property
    def has_requests(self) -> bool:
        """Whether something that was accepted has not ended."""
        return self._num_admitted > 0

    @property
    def is_alive(self) -> bool:
        return self._closed is None

    def start(self) -> None:
        """Steps from now on in a thread of its own."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Accepts nothing more, lets what was accepted end for at most `drain_timeout_s` (the
        setting of that name by default), then ends the rest with an error."""
        timeout_s = self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        with self._changed:
            self._closed = self._closed or "the server is shutting down"
            self._changed.notify_all()
            if self._thread is not None:
                self._changed.wait_for(lambda: self._num_admitted == 0, timeout_s)
            for request_id in [*self._receivers, *(s.request_id for s, _ in self._inbox)]:
                self._cancelled[request_id, None] = FinishReason.ERROR
            self._changed.notify_all()
        if self._thread is None:
            self._take_inbox()
        else:
            self._thread.join()
            self._thread = None
        self._close_tiers()

    def _close_tiers(self) -> None:
        """With what the pool knows, so that the next start finds it: for a few seconds, since
        whoever stops a server waits for this."""
        if self.tiers is None:
            return
        if self.config.kv_tiers.outlive_engine and not self._has_failed:
            kept = self._transfer.keep(self.scheduler.allocator.kept(), _KEEP_TIMEOUT_S)
            log.info("%d blocks of the pool are kept for the next start", kept)
        self.tiers.close(_KEEP_TIMEOUT_S)

    # The stepping thread, or the caller if there is none.

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[GenerationResult]:
        """Runs the prompts to their end, stepping here. One sequence each: n is 1. Raises
        InvalidRequestError."""
        assert self._thread is None, "the engine's own thread is stepping"
        each = params if isinstance(params, list) else [params] * len(prompts)
        assert all(own.n == 1 for own in each)
        results = [GenerationResult() for _ in prompts]
        requests = [
            GenerationRequest(prompt, own, result.add)
            for prompt, own, result in zip(prompts, each, results, strict=True)
        ]
        for request in requests:
            self._limits.check(request)  # all or none
        for request in requests:
            self.submit(request)
        while self.step():
            pass
        return results

    def step(self) -> bool:
        """Computes one step, if there is work. Returns whether there was."""
        if self._thread is None:
            self.clock.start()  # the time between steps is the caller's
        self._take_inbox()
        advance = self._step_ahead if self.runner.runs_ahead else self._step
        return advance() if self._trace is None else self._traced(advance)

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
                self._wait_for_blocks()
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
                self._wait_for_blocks()
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
            self._end_request(sequence.request_id, FinishReason.ERROR, str(exc))
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
            self._receivers.keep_prompt_logprobs(prompt)
        for output, logprobs, fault in zip(outputs, sampled.logprobs, sampled.faults, strict=True):
            if output is None:  # it has ended meanwhile
                continue
            sequence, token_id, reason = output
            if fault is None:
                self._emit(sequence, token_id, logprobs, reason)
            else:
                self._end(sequence, FinishReason.ERROR, fault)

    def _on_arrival(self) -> None:
        with self._changed:
            self._has_arrived = True
            self._changed.notify_all()

    def _wait_for_blocks(self) -> None:
        """All that could run waits for a tier: until something arrives, from there or a client."""
        with self._changed:
            self.clock.begin_idle()
            self._changed.wait_for(
                lambda: self._has_arrived or self._inbox or self._cancelled, _TIER_POLL_S
            )
            self.clock.end_idle()
            self._has_arrived = False

    def _run(self) -> None:
        try:
            self.clock.start()
            self.runner.bind_to_thread()
            while self._wait_for_work():
                self.step()
                self.after_step()
        except BaseException as exc:
            log.exception("the decode loop has ended")
            self._has_failed = True  # what blocks hold is no more certain
            self._fail(f"the engine has failed: {type(exc).__name__}: {exc}")
        finally:
            self.clock.stop()
        if self._trace is not None:
            self._trace.finish(self.stats.steps)

    def _wait_for_work(self) -> bool:
        """False when the engine is to stop and nothing is left to do."""
        with self._changed:
            if not self._is_wanted():
                self.clock.begin_idle()
                self._changed.wait_for(self._is_wanted)
                self.clock.end_idle()
            is_busy = self._inbox or self._receivers or self._in_flight is not None
            return bool(is_busy or self._closed is None)

    def _is_wanted(self) -> bool:
        return bool(
            self._inbox
            or self._cancelled
            or self.scheduler.has_work
            or self._in_flight is not None
            or self._closed is not None
        )

    def _take_inbox(self) -> None:
        if self._inbox or self._cancelled:  # what comes just now is for the next step
            self._take_arrived()
        now_s = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            self._end_request(heapq.heappop(self._deadlines)[1], FinishReason.DEADLINE)

    def _take_arrived(self) -> None:
        with self._changed:
            arrived, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, {}
            # Under the lock: `stop` finds each request in the inbox or here.
            self._receivers.add(arrived)
        for sequence, _ in arrived:
            self.scheduler.add(sequence)
            self.ledger.open(sequence.account, sequence.params.tenant or "")
            if sequence.params.deadline_ms is not None:
                deadline_s = sequence.arrival_s + sequence.params.deadline_ms / 1e3
                heapq.heappush(self._deadlines, (deadline_s, sequence.request_id))
        for (request_id, index), reason in cancelled.items():
            error = self._closed if reason is FinishReason.ERROR else None
            self._end_request(request_id, reason, error, index)

    def _end_request(
        self,
        request_id: int,
        reason: FinishReason,
        error: str | None = None,
        index: int | None = None,
    ) -> None:
        """Ends what has not ended yet of a request, or its sequence `index` alone."""
        for sequence in self._receivers.sequences(request_id):
            if index in (None, sequence.index):
                self._end(sequence, reason, error)

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
            if self._receivers.ends_with(sequence):
                with self._changed:
                    self._num_admitted -= 1
                    self._changed.notify_all()
        self._receivers.tell(sequence, token_id, logprobs, reason, error)

    def _fail(self, why: str) -> None:
        """The loop is over: every request gets its end, new ones are refused."""
        with self._changed:
            self._closed = why
            self._receivers.add(self._inbox)
            self._inbox.clear()
        for sequence in self._receivers.all_sequences():
            try:
                self._emit(sequence, None, None, FinishReason.ERROR, why)
            except Exception:  # a sink's fault must not cost the others their end
                log.exception("request %d did not take its end", sequence.request_id)
        self.after_step()

    def _count_admitted(self, plan: StepPlan) -> None:
        now_s = time.monotonic()
        for sequence in (scheduled.sequence for scheduled in plan.prefills):
            if sequence.num_computed_tokens == sequence.num_cached_tokens and not (
                sequence.num_preemptions
            ):
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


def _seed_of_fork(seed: int | None, index: int) -> int | None:
    """A seed for each further sequence of a request, unrelated to those that callers use."""
    if seed is None:
        return None
    digest = blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _load_runner(config: EngineConfig) -> ModelRunner:
    """Loads in a thread that ends with it, and so takes its OpenMP team along.

    Each thread that computes in parallel keeps a team of its own. Once the teams of a process
    have more threads than there are cores, libgomp makes waiting threads sleep almost at once
    (gomp_throttled_spin_count_var): each of a step's hundreds of parallel regions then pays for
    waking them, and a step takes a quarter longer.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="octavo-load") as loader:
        return loader.submit(ModelRunner, config).result()
