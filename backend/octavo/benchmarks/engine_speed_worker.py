"""Measures `engine_speed` in a process of its own.

`python -m octavo.benchmarks.engine_speed_worker` is given Options, and tells a `line` for each
workload; see `worker`.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, cast

import psutil
import torch

from octavo import __version__
from octavo.benchmarks.engine_speed import Line, Options
from octavo.benchmarks.peak_probe import PeakProbe
from octavo.benchmarks.peaks import Kind
from octavo.benchmarks.shapes import decoder_shape
from octavo.benchmarks.step_times import StepTimes, timing_steps
from octavo.benchmarks.workloads import (
    WARM_UP_TOKENS,
    Workload,
    measures,
    parse_workload,
    rounded,
)
from octavo.config import make_config
from octavo.engine import Engine
from octavo.generation import GenerationRequest, TokenOutput
from octavo.planner import roofline
from octavo.planner.roofline import Peaks
from octavo.sampling_params import parse
from octavo.scheduling.sequence import FinishReason
from octavo.worker import serve

_SEQUENCES = 32


def build_engine(options: Options, workloads: list[Workload]) -> Engine:
    """That runs the largest workload's requests at once, unless a setting says otherwise."""
    at_once = max(_SEQUENCES, *(workload.concurrency for workload in workloads))
    # Peaks and kernels here are the CPU's; bench/gpu.py has a GPU's.
    # Speed is measured of what may not be served too: its lines say ungated.
    settings: dict[str, Any] = {
        "max_num_seqs": at_once, "device": "cpu", "quality_gate": "off", **options.settings
    }  # fmt: skip
    engine = Engine(make_config(model=options.model, **settings))
    engine.runner.bind_to_thread()
    return engine


def run_requests(engine: Engine, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
    """Submits all, greedy and with the end of sequence ignored, and steps to the end. Of each
    request: seconds from the submission of all to each token.

    What fails leaves the engine without work. Raises InvalidRequestError if a prompt and its
    output are longer than the context.
    """
    params = parse({"temperature": 0, "max_tokens": output_tokens, "ignore_eos": True})
    times: list[list[float]] = [[] for _ in prompts]
    endings: list[TokenOutput] = []
    began_s = time.perf_counter()

    def request(index: int, prompt: list[int]) -> GenerationRequest:
        def take(output: TokenOutput) -> None:
            times[index].append(time.perf_counter() - began_s)
            if output.finish_reason is not None:
                endings.append(output)

        return GenerationRequest(prompt, params, take)

    requests = [request(index, prompt) for index, prompt in enumerate(prompts)]
    try:
        for each in requests:
            engine.submit(each)
        while engine.step():
            pass
    except BaseException:
        for each in requests:
            engine.cancel(each.request_id)
        while engine.step():
            pass
        raise
    # Whatever else a sequence ends by, its numbers would be of another load.
    for ending in endings:
        if ending.finish_reason is not FinishReason.LENGTH:
            raise RuntimeError(f"a request ended by {ending.finish_reason}: {ending.error}")
    assert len(endings) == len(prompts)
    return times


def measure_workload(engine: Engine, workload: Workload, options: Options) -> Line:
    """Medians over the runs, after a warm-up."""
    warm_up = workload.prompts(-1, engine.vocab_size)
    run_requests(engine, warm_up, min(WARM_UP_TOKENS, workload.output_tokens))
    found: list[dict[str, float]] = []
    steps = StepTimes()
    began_s = time.monotonic()
    for run in range(options.runs):
        if found and time.monotonic() - began_s > options.max_s:
            break
        prompts = workload.prompts(run, engine.vocab_size)
        if workload.primed:
            run_requests(engine, [workload.priming_prompt(prompts)], 2)
        with timing_steps(engine, steps):
            times = run_requests(engine, prompts, workload.output_tokens)
        found.append(measures(workload, times))
    line: Line = {name: rounded(median(each[name] for each in found)) for name in found[0]}
    line["runs"] = len(found)
    line["decode_tps_runs"] = [rounded(each["decode_tps"]) for each in found]
    line["forward_us"] = rounded(1e6 * median(steps.forward_s))
    line["host_us"] = rounded(1e6 * median(steps.host_s))
    return line


def roofline_of(line: Line, workload: Workload, engine: Engine, peaks: Peaks) -> Line:
    sequences = workload.concurrency
    context_tokens = roofline.mean_decode_context_tokens(
        workload.prompt_tokens, workload.output_tokens
    )
    step = roofline.decode_step_work(
        decoder_shape(engine.runner.model_config),
        weight_bytes=engine.runner.model.step_weight_bytes,
        kv_token_bytes=_kv_token_bytes(engine),
        sequences=sequences,
        context_tokens=context_tokens,
        shared_tokens=workload.shared_tokens,
    )
    floor_s, bound = step.floor_s(peaks.read_bytes_per_s, peaks.flops_per_s)
    return {
        "bytes_per_step": round(step.bytes),
        "flops_per_step": round(step.flops),
        "read_gbs": rounded(peaks.read_bytes_per_s / 1e9),
        "matrix_gflops": rounded(peaks.flops_per_s / 1e9),
        "bound": bound,
        "roofline_tps": rounded(sequences / floor_s),
        "roofline_ratio": rounded(line["decode_tps"] * floor_s / sequences),
    }


def _kv_token_bytes(engine: Engine) -> float:
    layout = engine.runner.kv_cache.layout
    return layout.block_bytes / layout.block_size


def describe(engine: Engine, options: Options, load_s: float) -> Line:
    """What all lines of an engine have in common."""
    assert options.model is not None
    config, runner = engine.config, engine.runner
    formats = sorted({own.name for own in runner.kv_cache.layout.formats})
    return {
        "peer": "octavo",
        "version": __version__,
        "torch": torch.__version__,
        "model": Path(options.model).name,
        "threads": runner.num_threads,
        "dtype": str(runner.dtype).removeprefix("torch."),
        "weight_format": runner.weight_format.name,
        "weight_group_size": runner.weight_format.group_size,
        "quality": engine.quality.label,
        "kv_cache_dtype": "+".join(formats),
        "kernels": "reference" if runner.library is None else "native",
        "isa": torch.backends.cpu.get_cpu_capability()
        if runner.library is None
        else runner.kernels,
        "max_num_seqs": config.max_num_seqs,
        "max_batched_tokens": config.max_num_batched_tokens,
        "prefix_caching": config.enable_prefix_caching,
        "kv_cache_bytes": runner.kv_cache.num_bytes,
        "weight_bytes": runner.model.step_weight_bytes,
        "load_s": round(load_s, 2),
        "label": options.label,
    }


def measure(options: Options) -> Iterator[Line]:
    """A line for each workload. Raises ConfigError before the first; a workload that fails later
    has its error in its line."""
    workloads = [parse_workload(name) for name in options.workloads]
    began_s = time.perf_counter()
    engine = build_engine(options, workloads)
    common = describe(engine, options, time.perf_counter() - began_s)
    runner = engine.runner
    kind = cast(Kind, runner.weight_format.activation)
    with PeakProbe(runner.num_threads, runner.kernels, engine.config.kernel_cache, kind) as probe:
        for workload in workloads:
            line: Line = {**common, "workload": workload.name}
            try:
                before = probe.measure()
                line |= measure_workload(engine, workload, options)
                best = before.better(probe.measure())
                line |= roofline_of(line, workload, engine, best)
            except Exception as error:  # a failed workload is a result too
                line["error"] = f"{type(error).__name__}: {error}"[:400]
            line["rss_mib"] = round(psutil.Process().memory_info().rss / 2**20)
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            line["peak_rss_mib"] = round(peak_kib / 2**10)
            yield line
    engine.stop()


def _events(options: dict[str, Any]) -> Iterator[dict[str, object]]:
    for line in measure(Options(**options)):
        yield {"line": line}


if __name__ == "__main__":
    serve(_events)
