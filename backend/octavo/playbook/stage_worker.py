"""Measures one stage in a process of its own: `python -m octavo.playbook.stage_worker`.

Given the settled inputs, a stage and its loads, it tells a `sample` for each load; see `worker`.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from octavo.config import SLO, make_config
from octavo.engine import Engine
from octavo.models.model_config import read_model_config
from octavo.models.sizes import decoder_shape, model_sizes
from octavo.planner import capacity, roofline
from octavo.planner import model as planner_model
from octavo.playbook.baseline import TransformersModel
from octavo.playbook.loads import Asked, Load, run_continuous, run_engine_batch, run_static
from octavo.playbook.options import Settled, num_requests
from octavo.playbook.samples import DecodeSteps, Sample, is_past_best
from octavo.playbook.stages import Stage
from octavo.playbook.workload import WORKLOADS, Request, Workload
from octavo.scheduling.sequence import StepPlan
from octavo.worker import serve

_STEP_TOKENS = 256  # the engine's default budget
_WATERMARK_RATIO = 0.01
_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """folder: of the stage's weights. earlier: samples of the same round, of fewer users; `slo`
    decides by them when more users are of no use. max_s: no further load begins after it."""

    settled: Settled
    stage: Stage
    folder: str
    round: int
    loads: tuple[int, ...]
    slo: SLO
    max_s: float = float("inf")
    earlier: tuple[Sample, ...] = ()

    @property
    def workload(self) -> Workload:
        return WORKLOADS[self.settled.workload].fitted(self.settled.context_tokens)

    def requests(self, users: int) -> list[Request]:
        return self.workload.requests(
            self.seed, users, num_requests(users), self.settled.vocab_size
        )

    def warm_up(self) -> Request:
        """Has the workload's beginning, as of a server that has been running for a while."""
        first = self.workload.request(self.seed, 0, -1, self.settled.vocab_size)
        return Request(first.prompt, min(first.output_tokens, _WARM_UP_TOKENS))

    @property
    def seed(self) -> int:
        return self.settled.seed + self.round


def kv_bytes(settled: Settled, folder: str) -> int:
    """Of a stage: what its weights leave of the memory that all stages have."""
    model = read_model_config(Path(folder))
    sizes = model_sizes(model, folder, settled.dtype)
    weights = planner_model.weight_bytes(sizes, planner_model.format_of(sizes)).stored
    return settled.kv_memory_bytes + settled.weight_bytes - weights


def build_engine(job: Job) -> Engine:
    settled, stage = job.settled, job.stage
    engine = Engine(
        make_config(
            model=job.folder,
            dtype=settled.dtype,
            device=settled.device,
            num_threads=settled.num_threads,
            max_model_len=settled.context_tokens,
            max_num_seqs=settled.most_users,
            max_num_batched_tokens=max(_STEP_TOKENS, settled.most_users),
            kv_cache_bytes=kv_bytes(settled, job.folder),
            watermark_ratio=_WATERMARK_RATIO,
            quality_gate="off",  # it has been asked: see the stage's quality
            **stage.engine_settings(settled.context_tokens),
        )
    )
    if not stage.paged:
        # It keeps room for sequences to grow. None grows here, as a block is a whole context.
        engine.scheduler.watermark_blocks = 0
    engine.runner.bind_to_thread()
    return engine


def tokens_read(tokens: int, windows: Mapping[int | None, int]) -> float:
    """Of so many before a new one, those that a layer reads, on average over the layers. windows:
    how many layers have it"""
    read = sum(
        count * (tokens if window is None else min(tokens, window - 1))
        for window, count in windows.items()
    )
    return read / sum(windows.values())


@dataclass(slots=True)
class _Observed:
    """What the engine's steps were given. Of those that only decode: sequences, and tokens before
    the new ones that a layer reads, on average over the layers."""

    windows: Mapping[int | None, int]
    sequences: list[int] = field(default_factory=list)
    contexts: list[float] = field(default_factory=list)
    prefill_tokens: int = 0
    most_running: int = 0

    @contextmanager
    def watching(self, engine: Engine) -> Iterator[None]:
        scheduler, schedule = engine.scheduler, engine.scheduler.schedule

        def watched() -> StepPlan:
            plan = schedule()
            self.prefill_tokens += plan.num_prefill_tokens
            if plan.decodes and not plan.prefills:
                self.sequences.append(len(plan.decodes))
                self.contexts.append(
                    sum(
                        tokens_read(each.num_computed_tokens, self.windows) for each in plan.decodes
                    )
                )
            self.most_running = max(self.most_running, len(scheduler.running))
            return plan

        scheduler.schedule = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            del scheduler.schedule  # the class has it

    def decode_steps(
        self, engine: Engine, elapsed_s: float, shared_tokens: int
    ) -> DecodeSteps | None:
        if not self.sequences:
            return None
        layout, runner = engine.runner.kv_cache.layout, engine.runner
        moved = flops = 0.0
        for sequences, contexts in zip(self.sequences, self.contexts, strict=True):
            step = roofline.decode_step_work(
                decoder_shape(runner.model_config),
                weight_bytes=runner.model.step_weight_bytes,
                kv_token_bytes=layout.block_bytes / layout.block_size,
                sequences=sequences,
                context_tokens=contexts / sequences,
                shared_tokens=shared_tokens,
            )
            moved += step.bytes
            flops += step.flops
        return DecodeSteps(len(self.sequences), moved, flops, elapsed_s)


class EngineStage:
    def __init__(self, job: Job) -> None:
        self._job, self._engine = job, build_engine(job)
        run_engine_batch(self._engine, [Asked(job.warm_up(), 0.0)])

    def measure(self, users: int) -> Sample:
        engine, job = self._engine, self._job
        requests = job.requests(users)
        observed = _Observed(Counter(engine.runner.model_config.sliding_windows))
        decoded_s = engine.stats.busy_s["decode"]
        preempted = engine.scheduler.counters.preemptions.total()
        gc.collect()
        with observed.watching(engine):
            load = self._run(requests, users)
        shared = self._shared_tokens()
        return Sample(
            stage=job.stage.key,
            round=job.round,
            users=users,
            window_s=load.window_s,
            requests=load.requests,
            prompt_tokens=sum(len(each.prompt) for each in requests),
            computed_tokens=observed.prefill_tokens,
            preemptions=engine.scheduler.counters.preemptions.total() - preempted,
            most_running=observed.most_running,
            fit=self._fit(),
            weight_bytes=engine.runner.model.num_bytes,
            kv_bytes=engine.runner.kv_cache.num_bytes,
            block_tokens=engine.scheduler.block_size,
            decode=observed.decode_steps(engine, engine.stats.busy_s["decode"] - decoded_s, shared),
        )

    def _run(self, requests: Sequence[Request], users: int) -> Load:
        if not self._job.stage.static:
            return run_continuous(self._engine, requests, users)
        return run_static(
            requests,
            users,
            self._count_fitting,
            lambda batch: run_engine_batch(self._engine, batch),
        )

    def _count_fitting(self, waiting: Sequence[Request]) -> int:
        """Whose prompts fit: how long the answers become, no server knows. Contiguous memory is
        reserved for the longest."""
        scheduler = self._engine.scheduler
        free = scheduler.allocator.num_blocks - scheduler.watermark_blocks
        count = 0
        for request in waiting[: scheduler.max_num_seqs]:
            free -= capacity.blocks_of(len(request.prompt), scheduler.block_size)
            if free < 0:
                break
            count += 1
        return max(count, 1)

    def _shared_tokens(self) -> int:
        """That all contexts have in common, and a step needs once."""
        workload, block = self._job.workload, self._engine.scheduler.block_size
        is_shared = self._job.stage.sharing and workload.beginnings == 1
        return workload.shared_tokens // block * block if is_shared else 0

    def _fit(self) -> int:
        workload, scheduler = self._job.workload, self._engine.scheduler
        shared = workload.shared_tokens if workload.beginnings == 1 else 0
        request = capacity.Request(
            workload.shared_tokens + workload.own.mean, workload.output.mean, shared
        )
        num_blocks = scheduler.allocator.num_blocks
        if not self._job.stage.paged:
            return num_blocks
        return capacity.requests_that_fit(
            num_blocks,
            scheduler.block_size,
            request,
            share_prefix=self._job.stage.sharing,
            watermark_ratio=_WATERMARK_RATIO,
        )


class GenerateStage:
    """A batch is as many as contiguous memory holds, although this library sets no bound."""

    def __init__(self, job: Job) -> None:
        self._job, self._model = job, TransformersModel(job.settled)
        self._model.run([Asked(job.warm_up(), 0.0)])

    def measure(self, users: int) -> Sample:
        job, settled = self._job, self._job.settled
        requests = job.requests(users)
        fit = capacity.contiguous_requests_that_fit(
            settled.kv_memory_bytes, settled.kv_token_bytes, settled.context_tokens
        )
        most = min(fit, settled.most_users)
        gc.collect()
        load = run_static(requests, users, lambda waiting: min(len(waiting), most), self._model.run)
        prompt_tokens = sum(len(each.prompt) for each in requests)
        return Sample(
            stage=job.stage.key,
            round=job.round,
            users=users,
            window_s=load.window_s,
            requests=load.requests,
            prompt_tokens=prompt_tokens,
            computed_tokens=prompt_tokens,
            preemptions=0,
            most_running=min(most, users),
            fit=fit,
            weight_bytes=self._model.weight_bytes,
            kv_bytes=settled.kv_memory_bytes,
            block_tokens=settled.context_tokens,
            decode=None,
        )


def measure(job: Job) -> Iterator[Sample]:
    stage = EngineStage(job) if job.stage.is_ours else GenerateStage(job)
    found = list(job.earlier)
    began_s = time.monotonic()
    for users in job.loads:
        is_late = bool(found) and time.monotonic() - began_s > job.max_s
        if is_late or is_past_best(found, job.slo):
            break
        found.append(stage.measure(users))
        yield found[-1]


def _events(options: dict[str, Any]) -> Iterator[dict[str, object]]:
    # That the gate is not asked again is why a stage may be served at all.
    quiet = logging.getLogger("octavo.quality.served")
    quiet.addFilter(lambda record: "served ungated" not in str(record.msg))
    job = Job(
        settled=Settled.from_json(options["settled"]),
        stage=Stage(**options["stage"]),
        folder=options["folder"],
        round=options["round"],
        loads=tuple(options["loads"]),
        slo=SLO(**options["slo"]),
        max_s=options["max_s"],
        earlier=tuple(map(Sample.from_json, options["earlier"])),
    )
    for sample in measure(job):
        yield {"sample": asdict(sample)}


if __name__ == "__main__":
    serve(_events)
