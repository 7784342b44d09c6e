"""The decode loop: takes requests in, steps the model, hands tokens out.

It knows token ids only; text is the serving layer's. One thread steps (see `start`); any
thread may submit and cancel. Without `start` the caller steps, as tests and benchmarks do.
"""

import heapq
import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from octavo.config import EngineConfig
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.execution.model_runner import ModelRunner
from octavo.execution.sampler import TokenLogprobs
from octavo.sampling_params import SamplingParams
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import FinishReason, Sequence, SequenceStatus, StepPlan
from octavo.stats import EngineGauges, EngineStats, Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of a request, or its end, or both. `token_id` is None if the end came from
    outside: a cancellation, a deadline, a fault."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


# Called by the stepping thread, so it must only hand the output on.
Sink = Callable[[TokenOutput], None]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """`arrival_s` is on time.monotonic's clock; deadline and order count from it."""

    prompt_token_ids: list[int]
    params: SamplingParams
    sink: Sink
    arrival_s: float = field(default_factory=time.monotonic)
    request_id: int = field(default_factory=itertools.count().__next__)  # the process's own


@dataclass(slots=True)
class GenerationResult:
    """What `generate` collects of one prompt."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, output: TokenOutput) -> None:
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
            self.logprobs.append(output.logprobs)
        self.finish_reason = output.finish_reason


class Engine:
    """Continuous batching over one model. Each accepted request gets exactly one output with a
    finish reason, whatever happens."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads the model. Raises ConfigError."""
        self.config = config
        self.runner = _load_runner(config)
        self.scheduler = Scheduler(
            num_blocks=self.runner.kv_cache.num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            watermark_ratio=config.watermark_ratio,
        )
        self.stats = EngineStats()
        self.gauges = EngineGauges(total_blocks=self.runner.kv_cache.num_blocks)
        # Called by the engine's own thread after each step: outputs can be handed on together,
        # which wakes a receiver once a step and not once a sequence.
        self.after_step: Callable[[], None] = lambda: None
        self.max_model_len = self.runner.max_model_len
        self.vocab_size = self.runner.model_config.vocab_size
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._inbox: deque[tuple[Sequence, Sink]] = deque()
        self._cancelled: dict[int, FinishReason] = {}
        self._num_admitted = 0
        self._closed: str | None = None  # why nothing is accepted any more
        # The stepping thread's own.
        self._live: dict[int, tuple[Sequence, Sink]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._thread: threading.Thread | None = None

    # Any thread.

    def submit(self, request: GenerationRequest) -> None:
        """Accepts a request. Raises InvalidRequestError if it can never run, EngineDeadError
        after a fault or a shutdown."""
        self._check(request)
        params = request.params
        if params.seed is None and not params.is_greedy:
            params = replace(params, seed=secrets.randbits(64))
        eos = () if params.ignore_eos else self.runner.model_config.eos_token_ids
        sequence = Sequence(
            request_id=request.request_id,
            token_ids=list(request.prompt_token_ids),
            params=params,
            arrival_s=request.arrival_s,
            max_len=len(request.prompt_token_ids) + params.max_tokens,
            stop_token_ids=frozenset((*eos, *params.stop_token_ids)),
        )
        with self._changed:
            if self._closed is not None:
                raise EngineDeadError(self._closed)
            self._num_admitted += 1
            self._inbox.append((sequence, request.sink))
            self._changed.notify_all()

    def cancel(self, request_id: int, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request before the next step; one that has ended is left alone."""
        with self._changed:
            self._cancelled[request_id] = reason
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
            for request_id in [*self._live, *(s.request_id for s, _ in self._inbox)]:
                self._cancelled[request_id] = FinishReason.ERROR
            self._changed.notify_all()
        if self._thread is None:
            self._take_inbox()
        else:
            self._thread.join()
            self._thread = None

    # The stepping thread, or the caller if there is none.

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[GenerationResult]:
        """Runs the prompts to their end, stepping here. Raises InvalidRequestError."""
        assert self._thread is None, "the engine's own thread is stepping"
        each = params if isinstance(params, list) else [params] * len(prompts)
        results = [GenerationResult() for _ in prompts]
        requests = [
            GenerationRequest(prompt, own, result.add)
            for prompt, own, result in zip(prompts, each, results, strict=True)
        ]
        for request in requests:
            self._check(request)  # all or none
        for request in requests:
            self.submit(request)
        while self.step():
            pass
        return results

    def step(self) -> bool:
        """Computes one step, if there is work. Returns whether there was."""
        self._take_inbox()
        if not self.scheduler.has_work:
            self._measure()
            return False
        began_s = time.perf_counter()
        plan = self.scheduler.schedule()
        self._count_admitted(plan)
        sampled = self.runner.run(plan)
        outputs = self.scheduler.update(plan, sampled.token_ids)
        self._count(plan, sum(sampled.is_finite), time.perf_counter() - began_s)
        for (sequence, token_id, reason), logprobs, is_finite in zip(
            outputs, sampled.logprobs, sampled.is_finite, strict=True
        ):
            if is_finite:
                self._emit(sequence, TokenOutput(token_id, logprobs, reason))
            else:
                self._end(sequence, FinishReason.ERROR, "the model's logits are not finite")
        return True

    def _run(self) -> None:
        try:
            self.runner.bind_to_thread()
            while self._wait_for_work():
                self.step()
                self.after_step()
        except BaseException as exc:
            log.exception("the decode loop has ended")
            self._fail(f"the engine has failed: {type(exc).__name__}: {exc}")

    def _wait_for_work(self) -> bool:
        """False when the engine is to stop and nothing is left to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._inbox
                    or self._cancelled
                    or self.scheduler.has_work
                    or self._closed is not None
                )
            )
            return bool(self._inbox or self._live or self._closed is None)

    def _take_inbox(self) -> None:
        with self._changed:
            arrived, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, {}
            # Under the lock: `stop` finds each request in the inbox or here.
            self._live.update({s.request_id: (s, sink) for s, sink in arrived})
        for sequence, _ in arrived:
            self.scheduler.add(sequence)
            if sequence.params.deadline_ms is not None:
                deadline_s = sequence.arrival_s + sequence.params.deadline_ms / 1e3
                heapq.heappush(self._deadlines, (deadline_s, sequence.request_id))
        for request_id, reason in cancelled.items():
            if request_id in self._live:
                error = self._closed if reason is FinishReason.ERROR else None
                self._end(self._live[request_id][0], reason, error)
        now_s = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id = heapq.heappop(self._deadlines)
            if request_id in self._live:
                self._end(self._live[request_id][0], FinishReason.DEADLINE)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """Ends a sequence from outside the scheduler's own rules."""
        if sequence.status is not SequenceStatus.FINISHED:
            self.scheduler.finish(sequence)
        self._emit(sequence, TokenOutput(None, finish_reason=reason, error=error))

    def _emit(self, sequence: Sequence, output: TokenOutput) -> None:
        _, sink = self._live[sequence.request_id]
        if output.finish_reason is not None:
            del self._live[sequence.request_id]
            with self._changed:
                self._num_admitted -= 1
                self._changed.notify_all()
        sink(output)

    def _fail(self, why: str) -> None:
        """The loop is over: every request gets its end, new ones are refused."""
        with self._changed:
            self._closed = why
            self._live.update({s.request_id: (s, sink) for s, sink in self._inbox})
            self._inbox.clear()
        for sequence, _ in list(self._live.values()):
            try:
                self._emit(sequence, TokenOutput(None, finish_reason=FinishReason.ERROR, error=why))
            except Exception:  # a sink's fault must not cost the others their end
                log.exception("request %d did not take its end", sequence.request_id)
        self.after_step()
        self.gauges = EngineGauges(total_blocks=self.runner.kv_cache.num_blocks)

    def _check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequestError if the request can never run."""
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise InvalidRequestError("prompt", "0 tokens", "at least 1 token is needed")
        if len(prompt) >= self.max_model_len:
            raise InvalidRequestError(
                "prompt", f"{len(prompt)} tokens",
                f"at most {self.max_model_len - 1}: the context is {self.max_model_len} tokens",
            )  # fmt: skip
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise InvalidRequestError(
                "max_tokens", params.max_tokens,
                f"at most {self.max_model_len - len(prompt)}: the context is "
                f"{self.max_model_len} tokens and the prompt has {len(prompt)}",
            )  # fmt: skip
        for field_name, ids in (("input_ids", prompt), ("stop_token_ids", params.stop_token_ids)):
            outside = [token_id for token_id in ids if not 0 <= token_id < self.vocab_size]
            if outside:
                limit = f"token ids are 0 to {self.vocab_size - 1}"
                raise InvalidRequestError(field_name, outside[0], limit)

    def _count_admitted(self, plan: StepPlan) -> None:
        now_s = time.monotonic()
        for sequence in (scheduled.sequence for scheduled in plan.prefills):
            if sequence.num_computed_tokens == 0 and sequence.num_preemptions == 0:
                self.stats.prompt_tokens += sequence.num_prompt_tokens
                self.stats.queue_time_s.observe(now_s - sequence.arrival_s)

    def _count(self, plan: StepPlan, num_outputs: int, elapsed_s: float) -> None:
        phase: Phase = "mixed" if plan.decodes else "prefill"
        if not plan.prefills:
            phase = "decode"
        self.stats.steps += 1
        self.stats.busy_s[phase] += elapsed_s
        self.stats.generation_tokens += num_outputs
        self._measure()

    def _measure(self) -> None:
        scheduler = self.scheduler
        used = scheduler.allocator.num_used
        filled = sum(sequence.num_computed_tokens for sequence in scheduler.running)
        self.gauges = EngineGauges(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            used_blocks=used,
            total_blocks=scheduler.allocator.num_blocks,
            fragmentation_ratio=1 - filled / (used * scheduler.block_size) if used else 0.0,
        )


def _load_runner(config: EngineConfig) -> ModelRunner:
    """Loads in a thread that ends with it, and so takes its OpenMP team along.

    Each thread that computes in parallel keeps a team of its own. Once the teams of a process
    have more threads than there are cores, libgomp makes waiting threads sleep almost at once
    (gomp_throttled_spin_count_var): each of a step's hundreds of parallel regions then pays for
    waking them, and a step takes a quarter longer.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="octavo-load") as loader:
        return loader.submit(ModelRunner, config).result()
