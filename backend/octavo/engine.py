"""The engine: takes requests in, lets the decode loop step, and ends all that it took.

It knows token ids only; text is the serving layer's. One thread steps (see `start`); any
thread may submit and cancel. Without `start` the caller steps, as tests and benchmarks do.
"""

import heapq
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b

from octavo.config import EngineConfig
from octavo.decode_loop import DecodeLoop
from octavo.execution.model_runner import ModelRunner
from octavo.gauges import EngineGauges
from octavo.generation import GenerationRequest, GenerationResult
from octavo.inbox import Inbox
from octavo.quality.served import admit
from octavo.request_limits import RequestLimits
from octavo.sampling_params import SamplingParams
from octavo.scheduling.sequence import FinishReason, Sequence
from octavo.tiers import open_tiers

log = logging.getLogger(__name__)

_KEEP_TIMEOUT_S = 5.0


class Engine:
    """Continuous batching over one model. Each of an accepted request's n sequences gets exactly
    one output with a finish reason, whatever happens."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads the model. Raises ConfigError, also if its quality is to be shown and is not."""
        self.config = config
        self.runner = _load_runner(config)
        self.quality = admit(config, self.runner)
        self.loaded_at_s = time.time()
        self._inbox = Inbox(config.max_num_admitted)
        # What a block's bytes mean: only where they outlive the engine or leave it.
        namespace = self.runner.kv_namespace if config.kv_tiers.outlive_engine else b""
        self.tiers = open_tiers(
            config.kv_tiers,
            block_bytes=self.runner.kv_cache.block_bytes,
            namespace=namespace,
            on_arrival=self._inbox.bring_blocks,
        )
        self._loop = DecodeLoop(config, self.runner, self.tiers, namespace, self._inbox)
        self.scheduler, self.stats = self._loop.scheduler, self._loop.stats
        self.clock, self.ledger = self._loop.clock, self._loop.ledger
        self.tenant_labels = self._loop.tenant_labels
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
        self._deadlines: list[tuple[float, int]] = []  # the stepping thread's own
        self._thread: threading.Thread | None = None
        self._has_failed = False

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
        self._inbox.put(sequence, request.sink)

    def cancel(
        self,
        request_id: int,
        reason: FinishReason = FinishReason.CANCELLED,
        index: int | None = None,
    ) -> None:
        """Ends a request, or one of its sequences, before the next step; what has ended is left
        alone."""
        self._inbox.cancel(request_id, reason, index)

    def wait_for_room(self, timeout_s: float) -> bool:
        """Whether another request may be submitted now, waiting at most `timeout_s` for it.
        True once the engine is closed, so that nobody waits for what submit will refuse."""
        return self._inbox.wait_for_room(timeout_s)

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
        with self._inbox.lock:
            self.clock.pass_idle()

    @property
    def has_requests(self) -> bool:
        """Whether something that was accepted has not ended."""
        return self._inbox.num_admitted > 0

    @property
    def is_alive(self) -> bool:
        return self._inbox.closed is None

    def start(self) -> None:
        """Steps from now on in a thread of its own."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Accepts nothing more, lets what was accepted end for at most `drain_timeout_s` (the
        setting of that name by default), then ends the rest with an error."""
        timeout_s = self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        with self._inbox.lock:
            if self._inbox.closed is None:
                self._inbox.close("the server is shutting down")
        if self._thread is not None:
            self._inbox.wait_until_empty(timeout_s)
        with self._inbox.lock:
            for request_id in [*self._loop.receivers, *self._inbox.request_ids]:
                self._inbox.cancel(request_id, FinishReason.ERROR)
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
            kept = self._loop.keep_blocks(_KEEP_TIMEOUT_S)
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
        return self._loop.step()

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
        self._loop.finish_trace()

    def _wait_for_work(self) -> bool:
        """False when the engine is to stop and nothing is left to do."""
        self._inbox.wait_for_work(self.clock, lambda: self._loop.has_work)
        return self._inbox.has_mail or self._loop.is_awaited or self.is_alive

    def _take_inbox(self) -> None:
        if self._inbox.has_mail:  # what comes just now is for the next step
            self._take_arrived()
        now_s = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            self._loop.end_request(heapq.heappop(self._deadlines)[1], FinishReason.DEADLINE)

    def _take_arrived(self) -> None:
        with self._inbox.lock:  # `stop` finds each request in the inbox or at the receivers
            arrived, cancelled = self._inbox.take()
            self._loop.receivers.add(arrived)
        for sequence, _ in arrived:
            self._loop.add(sequence)
            if sequence.params.deadline_ms is not None:
                deadline_s = sequence.arrival_s + sequence.params.deadline_ms / 1e3
                heapq.heappush(self._deadlines, (deadline_s, sequence.request_id))
        for (request_id, index), reason in cancelled.items():
            error = self._inbox.closed if reason is FinishReason.ERROR else None
            self._loop.end_request(request_id, reason, error, index)

    def _fail(self, why: str) -> None:
        """The loop is over: every request gets its end, new ones are refused."""
        with self._inbox.lock:
            self._inbox.close(why)
            self._loop.receivers.add(self._inbox.take()[0])
        self._loop.abandon(why)
        self.after_step()


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
