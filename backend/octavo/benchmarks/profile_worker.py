"""Measures `profile` in a process of its own.

`python -m octavo.benchmarks.profile_worker` is given Options, and tells `progress` and at last a
`result`; see `worker`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from octavo.benchmarks.machine import machine, versions
from octavo.benchmarks.peaks import Kind, matrix_flops_per_s, read_bytes_per_s
from octavo.benchmarks.profile import WARM_UP_STEPS, Options, Result
from octavo.benchmarks.profile_device import (
    NOTES,
    device_times,
    measure_device_peaks,
    plain_steps,
    recorded_on_device,
)
from octavo.benchmarks.profile_result import phase_result
from octavo.benchmarks.profile_steps import Recorded, StepWatch, mean_times
from octavo.benchmarks.shapes import network_of
from octavo.config import make_config
from octavo.engine import Engine
from octavo.errors import ConfigError
from octavo.execution.model_runner import ModelRunner
from octavo.execution.step_trace import StepTrace, warm_up
from octavo.generation import GenerationRequest
from octavo.sampling_params import parse
from octavo.worker import serve

_TRACED_STEPS = 8
Event = dict[str, object]
Peaks = dict[str, Any]  # read_bytes_per_s, and flops_per_s by kind


def build_engine(options: Options) -> Engine:
    """That runs the whole batch at once. Raises ConfigError."""
    settings: dict[str, Any] = {
        "max_num_seqs": options.batch, "quality_gate": "off", **options.settings
    }  # fmt: skip
    settings.setdefault("max_num_batched_tokens", max(256, 2 * options.batch))
    engine = Engine(make_config(model=options.model, **settings))
    engine.runner.bind_to_thread()
    longest = options.check_fits(engine.max_model_len, engine.config.max_num_batched_tokens)
    allocator = engine.scheduler.allocator
    needed = options.batch * -(-longest // engine.scheduler.block_size)
    if needed > allocator.num_blocks:
        raise ConfigError(
            f"--batch = {options.batch}: sequences of {longest} tokens take {needed} "
            f"blocks together, and KV memory has {allocator.num_blocks}; lower --batch, --context "
            "or --prompt, or raise kv_cache_bytes (--set kv_cache_bytes=…)"
        )
    return engine


class Profile:
    """Of one engine on the CPU."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self._network = network_of(engine.runner)
        self.on_device = engine.runner.device.type == "cuda"
        self._watch = StepWatch(engine, self._network)
        self._sequences = options.sequences(engine.config.max_num_batched_tokens)
        self._seed = 0

    def prefill(self) -> Iterator[tuple[int, int]]:
        """Whole prefills of the batch, by turns recorded and not. Tells how many are done."""
        recorded: list[Recorded] = []
        plain: list[float] = []
        if self.on_device:
            yield from self._device_prefill()
            return
        self.prefill_steps = 0
        rounds = 2 * self.options.prefills
        for index in range(-2, rounds):  # the first two warm up
            self.submit(self.options.prompt, 1)
            steps = 0
            if index % 2:
                total = Recorded()
                while self.engine.scheduler.has_work or steps == 0:
                    self._watch.recorded_step(total)
                    steps += 1
                recorded += [total] if index >= 0 else []
            else:
                elapsed_s = 0.0
                while self.engine.scheduler.has_work or steps == 0:
                    elapsed_s += self._watch.plain_step()
                    steps += 1
                plain += [elapsed_s] if index >= 0 else []
            self.prefill_steps = steps
            yield max(index + 1, 0), rounds
        self.prefill_found = mean_times(recorded, plain)

    def decode(self) -> Iterator[tuple[int, int]]:
        """Steps that decode the batch and nothing else, by turns recorded and not."""
        options = self.options
        recorded: list[Recorded] = []
        plain: list[float] = []
        self.submit(self._sequences.prompt_tokens, self._sequences.output_tokens)
        while not self.decodes_all():
            self.engine.step()
        if self.on_device:
            yield from self._device_decode()
            return
        for index in range(-WARM_UP_STEPS, options.steps):
            assert self.decodes_all()
            if index % 2:
                step = Recorded()
                self._watch.recorded_step(step)
                recorded += [step] if index >= 0 else []
            else:
                elapsed_s = self._watch.plain_step()
                plain += [elapsed_s] if index >= 0 else []
            yield max(index + 1, 0), options.steps
        while self.engine.step():
            pass
        self.decode_found = mean_times(recorded, plain)

    def _device_prefill(self) -> Iterator[tuple[int, int]]:
        prefills = self.options.prefills
        plain = []
        for index in range(-2, prefills):
            self.submit(self.options.prompt, 1)
            began_s = time.perf_counter()
            while self.engine.step():
                pass
            plain += [time.perf_counter() - began_s] if index >= 0 else []
            yield max(index + 1, 0), prefills
        self.submit(self.options.prompt, 1)
        # Until the tokens of all have come back.
        recorded, self.prefill_steps = recorded_on_device(
            self.engine, self._network, lambda: self.engine.has_requests
        )
        self.prefill_found = device_times(recorded, plain, 1)

    def _device_decode(self) -> Iterator[tuple[int, int]]:
        half = self.options.steps // 2
        plain_steps(self.engine, WARM_UP_STEPS)
        plain = plain_steps(self.engine, half)
        yield half, 2 * half
        left = iter(range(half))
        recorded, count = recorded_on_device(
            self.engine, self._network, lambda: next(left, None) is not None
        )
        while self.engine.step():
            pass
        self.decode_found = device_times(recorded, plain, count)
        yield 2 * half, 2 * half

    def trace(self, file: Path) -> None:
        """A prefill of the batch and some decode steps. Raises OSError."""
        warm_up(self.on_device)
        trace = StepTrace(self.engine.runner.library, self.on_device)
        self.submit(self.options.prompt, 1)
        trace.start()
        number = 0
        while self.engine.scheduler.has_work or number == 0:
            number += 1
            trace.step(number, self.engine.step)
        trace.stop_ranges()
        self.submit(self._sequences.prompt_tokens, self._sequences.output_tokens)
        while not self.decodes_all():
            self.engine.step()
        trace.start_ranges()
        for _ in range(_TRACED_STEPS):
            number += 1
            trace.step(number, self.engine.step)
        trace.stop()
        while self.engine.step():
            pass
        trace.write(file)

    def submit(self, prompt_tokens: int, output_tokens: int) -> None:
        """The batch, with prompts of random tokens that nobody has seen."""
        params = parse({"temperature": 0, "max_tokens": output_tokens, "ignore_eos": True})
        for _ in range(self.options.batch):
            self._seed += 1
            generator = random.Random(self._seed)
            prompt = [generator.randrange(self.engine.vocab_size) for _ in range(prompt_tokens)]
            self.engine.submit(GenerationRequest(prompt, params, lambda _: None))

    def decodes_all(self) -> bool:
        running = self.engine.scheduler.running
        return len(running) == self.options.batch and all(each.is_decoding for each in running)


def measure_peaks(runner: ModelRunner) -> Peaks:
    if runner.device.type == "cuda":
        return measure_device_peaks(runner.device)
    library = runner.library
    kinds: tuple[Kind, ...] = ("float32", "bfloat16", "int8")
    if runner.dtype is torch.float16:
        kinds = (*kinds, "float16")
    return {
        "read_bytes_per_s": read_bytes_per_s(library),
        "flops_per_s": {kind: matrix_flops_per_s(library, kind) for kind in kinds},
    }


def better(one: Peaks, other: Peaks) -> Peaks:
    flops = {
        kind: max(one["flops_per_s"][kind], other["flops_per_s"][kind])
        for kind in one["flops_per_s"]
    }
    read = max(one["read_bytes_per_s"], other["read_bytes_per_s"])
    return {"read_bytes_per_s": read, "flops_per_s": flops}


def measure(options: Options) -> Iterator[Event]:
    """Raises ConfigError before anything is measured."""
    options.check()
    yield _progress("loading", 0, None)
    engine = build_engine(options)
    runner = engine.runner
    yield _progress("peaks", 0, 2)
    peaks = measure_peaks(runner)
    own = Profile(engine, options)
    for name, act in (("prefill", own.prefill), ("decode", own.decode)):
        yield from _told(name, act)
    yield _progress("peaks", 1, 2)
    peaks = better(peaks, measure_peaks(runner))
    phases = {
        "prefill": phase_result(runner, peaks, own.prefill_found, steps=own.prefill_steps),
        "decode": phase_result(runner, peaks, own.decode_found, steps=1),
    }
    if options.trace is not None:
        yield _progress("trace", 0, None)
        own.trace(Path(options.trace))
    engine.stop()
    yield {"result": {**describe(engine, options), "peaks": peaks, "phases": phases}}


def describe(engine: Engine, options: Options) -> Result:
    assert options.model is not None
    runner, layout = engine.runner, engine.runner.kv_cache.layout
    return {
        "benchmark": "profile",
        "model": Path(options.model).name,
        "versions": versions(),
        "machine": machine(),
        "device": str(runner.device),
        "device_name": torch.cuda.get_device_name() if runner.device.type == "cuda" else "",
        "kernels": runner.kernels,
        "threads": runner.num_threads,
        "dtype": str(runner.dtype).removeprefix("torch."),
        "weight_format": str(runner.weight_format),
        "quality": engine.quality.label,
        "notes": notes_of(runner),
        "kv_cache_dtype": "+".join(sorted({own.name for own in layout.formats})),
        "weight_bytes": runner.model.step_weight_bytes,
        "kv_token_bytes": layout.block_bytes / layout.block_size,
        "batch": options.batch,
        "context_tokens": options.context,
        "prompt_tokens": options.prompt,
        "max_num_batched_tokens": engine.config.max_num_batched_tokens,
    }


def notes_of(runner: ModelRunner) -> list[str]:
    """What cannot be had here, in words."""
    if runner.device.type == "cuda":
        return [*NOTES]
    if runner.library is None:
        return [
            "where threads wait for each other: the reference operators are torch's, whose threads "
            "do not tell; an operation's time is that of its calls, and 'barriers' is part of "
            "'kernels'"
        ]
    return []


def _told(name: str, act: Callable[[], Iterator[tuple[int, int]]]) -> Iterator[Event]:
    for done, of in act():
        yield _progress(name, done, of)


def _progress(step: str, done: int, of: int | None) -> Event:
    return {"progress": {"step": step, "done": done, "of": of}}


def _events(options: dict[str, Any]) -> Iterator[Event]:
    yield from measure(Options(**options))


if __name__ == "__main__":
    serve(_events)
