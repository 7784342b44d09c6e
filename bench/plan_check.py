#!/usr/bin/env python3
"""Does the planner predict this machine? Fits its constants on one model and predicts another.

    python bench/plan_check.py bench-150m bench-1b --out constants.json

Each batch at each context is run on both models in turn, some rounds of it. Every second or so of
decoding the machine's peaks are read again, so that a prediction is held against the machine that
the steps ran on: others may use it too. Steps between readings that differ by a tenth do not count.
The constants are fitted on the first model alone; then TPOT and cost of both are predicted and set
beside what was measured, and the requests that fit into a pool are tried out on the engine.

    TPOT    the median step between two readings that decodes all requests and nothing else
    cost    dollars per million output tokens of the whole run with its prompts, a dollar an hour

`octavo plan --constants constants.json` takes what --out writes; `--from constants.json` judges
the same measurements again.
"""

import os

# As the server's environment has it; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, cast

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from octavo.benchmarks.machine import machine, versions
from octavo.benchmarks.peak_probe import PeakProbe
from octavo.benchmarks.peaks import Kind
from octavo.config import make_config
from octavo.engine import Engine
from octavo.errors import ConfigError
from octavo.generation import GenerationRequest, TokenOutput
from octavo.models.config_section import read_json
from octavo.models.model_config import model_config
from octavo.models.sizes import model_sizes
from octavo.planner import capacity, cost
from octavo.planner.capacity import Request
from octavo.planner.fitting import (
    DecodeSample,
    PrefillSample,
    fit_efficiency,
    predicted_step_s,
)
from octavo.planner.latency import Efficiency, Loaded, Speed, decode_step_s, prefill_s
from octavo.planner.model import ModelSizes, format_of, kv_layout, kv_token_bytes, weight_bytes
from octavo.planner.roofline import Peaks, mean_decode_context_tokens
from octavo.planner.setup import usual_batched_tokens
from octavo.sampling_params import parse

USD_PER_HOUR = 1.0
WINDOW_S = 1.0  # of steps between two readings of the peaks, at least
MOST_CHANGE_RATIO = 0.1  # between them; beyond it nobody knows what the steps ran on
WARM_UP = Request(64, 16)


@dataclass(frozen=True, slots=True)
class Window:
    """Steps that decoded all requests and nothing else, between two readings of the peaks that
    agree.

    context_tokens, step_s: medians
    read_bytes_per_s, flops_per_s: means of the two readings
    """

    context_tokens: float
    step_s: float
    read_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One batch at one context of one model, all requests given at once. Seconds are of the
    engine's steps alone; the peaks are medians of the run's readings."""

    model: str
    prompt_tokens: int
    output_tokens: int
    batch: int
    chunk_tokens: int
    ttft_s: float  # of the first request
    total_s: float
    read_bytes_per_s: float
    flops_per_s: float
    windows: tuple[Window, ...]

    @property
    def request(self) -> Request:
        return Request(self.prompt_tokens, self.output_tokens)

    @property
    def peaks(self) -> Peaks:
        return Peaks(self.read_bytes_per_s, self.flops_per_s)

    def decodes(self, loaded: Loaded) -> list[DecodeSample]:
        return [
            DecodeSample(
                loaded, Peaks(own.read_bytes_per_s, own.flops_per_s), self.batch,
                own.context_tokens, own.step_s,
            )
            for own in self.windows
        ]  # fmt: skip

    def prefill(self, loaded: Loaded) -> PrefillSample:
        return PrefillSample(loaded, self.peaks, self.prompt_tokens, self.chunk_tokens, self.ttft_s)

    def predicted_total_s(self, loaded: Loaded, efficiency: Efficiency) -> float:
        """All prompts at once, beside decodes of those that are through, and then the decodes of
        the last."""
        speed = Speed.of(self.peaks, efficiency)
        prompt, chunk = self.prompt_tokens, self.chunk_tokens
        context = mean_decode_context_tokens(prompt, self.output_tokens)
        prompts_s = self.batch * prefill_s(loaded, speed, prompt, 0, chunk)
        steps = -(-self.batch * prompt // chunk)
        beside_s = decode_step_s(loaded, speed, (self.batch - 1) / 2, context)
        decode_s = decode_step_s(loaded, speed, self.batch, context)
        return prompts_s + steps * beside_s + (self.output_tokens - 1) * decode_s

    def usd_per_million(self, total_s: float) -> float:
        return cost.usd_per_million_good_tokens(
            self.batch * self.output_tokens, total_s, USD_PER_HOUR
        )


@dataclass(frozen=True, slots=True)
class Model:
    """weights: the setting weight_format; config: what config.json has"""

    name: str
    weights: str
    config: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, weights: str) -> "Model":
        return cls(folder.resolve().name, weights, read_json(folder / "config.json"))

    @property
    def sizes(self) -> ModelSizes:
        return model_sizes(model_config(self.config), self.name, "auto")

    @property
    def loaded(self) -> Loaded:
        own = format_of(self.sizes, self.weights)
        token_bytes = kv_token_bytes(kv_layout(self.sizes))
        step_bytes = weight_bytes(self.sizes, own).step
        return Loaded(self.sizes, step_bytes, token_bytes, own.weight_bits)


class _Clock:
    """Of one run. Reads the peaks before and after, and between once steps that decode all
    sequences have taken WINDOW_S. The step right after a reading, which still has the reader's
    threads beside it, is taken to last as long as the one that follows."""

    def __init__(self, probe: PeakProbe) -> None:
        self._probe = probe
        self._steps: list[tuple[float, float]] = []  # of this window: context, seconds
        self._is_stale = False  # the last reading was before other steps
        self._has_read = False  # just now
        self._num_steps = 1  # that the next one stands for
        self.total_s = 0.0
        self.readings = [probe.measure()]
        self.windows: list[Window] = []

    def add(self, step_s: float, context_tokens: float | None) -> None:
        """context_tokens: mean of the sequences if all of them and nothing else was computed"""
        if self._has_read:
            self._has_read, self._num_steps = False, 2
            return
        self.total_s += self._num_steps * step_s
        self._num_steps = 1
        if context_tokens is None:
            self._is_stale = True
        elif self._is_stale:
            self._read()
            self._steps, self._is_stale = [], False
        else:
            self._steps.append((context_tokens, step_s))
            if sum(step_s for _, step_s in self._steps) >= WINDOW_S:
                self.close_window()

    def _read(self) -> None:
        self.readings.append(self._probe.measure())
        self._has_read = True

    def close_window(self) -> None:
        self._read()
        before, after = self.readings[-2:]
        speeds = sorted([before.read_bytes_per_s, after.read_bytes_per_s])
        if self._steps and speeds[1] < (1 + MOST_CHANGE_RATIO) * speeds[0]:
            contexts, times = zip(*self._steps, strict=True)
            self.windows.append(
                Window(
                    median(contexts), median(times), mean(speeds),
                    mean([before.flops_per_s, after.flops_per_s]),
                )
            )  # fmt: skip
        self._steps = []


class Subject:
    """A model that is loaded, and the reader of its machine's peaks."""

    def __init__(self, folder: Path, requests: list[tuple[int, Request]], weights: str) -> None:
        """requests: batches of alike ones that are to be run"""
        self.model = Model.of(folder, weights)
        layout = kv_layout(self.model.sizes)
        blocks = max(
            batch * (capacity.request_blocks(each, layout.block_size) + 1)
            for batch, each in requests
        )
        self.engine = Engine(
            make_config(
                model=folder, device="cpu", weight_format=weights, quality_gate="off",
                enable_prefix_caching=False, kv_cache_bytes=2 * blocks * layout.block_bytes,
                max_num_seqs=max(batch for batch, _ in requests),
            )
        )  # fmt: skip
        runner = self.engine.runner
        runner.bind_to_thread()
        self.probe = PeakProbe(
            runner.num_threads, runner.kernels, self.engine.config.kernel_cache,
            cast(Kind, runner.weight_format.activation),
        )  # fmt: skip

    def run(self, batch: int, request: Request, seed: int) -> Run:
        engine, clock = self.engine, _Clock(self.probe)
        luck = random.Random(f"{batch}/{request}/{seed}")
        params = parse({"temperature": 0, "max_tokens": request.output_tokens, "ignore_eos": True})
        answered: list[TokenOutput] = []
        # What was idle while the other model ran may sleep, or its memory be elsewhere.
        engine.generate([[0] * WARM_UP.prompt_tokens], parse({"max_tokens": WARM_UP.output_tokens}))
        for _ in range(batch):
            prompt = [luck.randrange(engine.vocab_size) for _ in range(request.prompt_tokens)]
            engine.submit(GenerationRequest(prompt, params, answered.append))
        ttft_s, going = 0.0, True
        while going:
            contexts = [each.num_computed_tokens + 1 for each in engine.scheduler.running]
            decoded_s, began_s = engine.stats.busy_s["decode"], time.perf_counter()
            going = engine.step()
            elapsed_s = time.perf_counter() - began_s
            decodes_all = len(contexts) == batch and engine.stats.busy_s["decode"] > decoded_s
            clock.add(elapsed_s, mean(contexts) if decodes_all else None)
            if answered and not ttft_s:
                ttft_s = clock.total_s
        clock.close_window()
        assert len(answered) >= batch and not any(own.error for own in answered)
        return Run(
            self.model.name, request.prompt_tokens, request.output_tokens, batch,
            engine.config.max_num_batched_tokens, ttft_s, clock.total_s,
            median(own.read_bytes_per_s for own in clock.readings),
            median(own.flops_per_s for own in clock.readings), tuple(clock.windows),
        )  # fmt: skip

    def close(self) -> None:
        self.engine.stop()
        self.probe.__exit__(None, None, None)


def fitted(own: list[Run], loaded: Loaded) -> Efficiency:
    """Prompts of one request alone: in those of several, TTFT is the queue's."""
    alone = [each.prefill(loaded) for each in own if each.batch == 1]
    return fit_efficiency([sample for each in own for sample in each.decodes(loaded)], alone)


def compared(own: list[Run], loaded: Loaded, efficiency: Efficiency) -> dict[str, Any]:
    """Runs of one point: medians, and by how much predictions are off in the median."""
    samples = [sample for each in own for sample in each.decodes(loaded)]
    predicted_s = [predicted_step_s(each, efficiency) for each in samples]
    ratios = [step_s / each.step_s for step_s, each in zip(predicted_s, samples, strict=True)]
    totals_s = [each.predicted_total_s(loaded, efficiency) for each in own]
    total_ratios = [total_s / each.total_s for total_s, each in zip(totals_s, own, strict=True)]
    one, speeds = own[0], [each.peaks.read_bytes_per_s / 1e9 for each in samples]
    return {
        "model": one.model,
        "batch": one.batch,
        "prompt_tokens": one.prompt_tokens,
        "output_tokens": one.output_tokens,
        "windows": len(samples),
        "read_gb_per_s": [min(speeds), max(speeds)] if samples else None,
        "tpot_ms": 1e3 * median(each.step_s for each in samples) if samples else None,
        "predicted_tpot_ms": 1e3 * median(predicted_s) if samples else None,
        "tpot_off": median(ratios) - 1 if samples else None,
        "usd": one.usd_per_million(median(each.total_s for each in own)),
        "predicted_usd": one.usd_per_million(median(totals_s)),
        "usd_off": median(total_ratios) - 1,
    }


def judged(models: list[Model], runs: list[Run]) -> tuple[Efficiency, list[dict[str, Any]]]:
    """Fitted on the first model; all points, model after model."""
    loaded = {model.name: model.loaded for model in models}
    first = models[0].name
    points: dict[tuple[str, int, int], list[Run]] = defaultdict(list)
    for each in runs:
        points[each.model, each.prompt_tokens, each.batch].append(each)
    efficiency = fitted([each for each in runs if each.model == first], loaded[first])
    rows = [compared(own, loaded[own[0].model], efficiency) for own in points.values()]
    order = list(loaded)
    return efficiency, sorted(rows, key=lambda row: order.index(row["model"]))


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    headings = ("model", "batch", "context", "TPOT, ms", "predicted", "off", "$/M", "predicted",
                "off", "GB/s read")  # fmt: skip
    for index, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if index else "left")
    for row in rows:
        tpot = ("–", "–", "–")
        if row["windows"]:
            tpot = (
                f"{row['tpot_ms']:.2f}", f"{row['predicted_tpot_ms']:.2f}",
                f"{row['tpot_off']:+.0%}",
            )  # fmt: skip
        shown.add_row(
            row["model"], str(row["batch"]), str(row["prompt_tokens"]), *tpot,
            f"{row['usd']:.3g}", f"{row['predicted_usd']:.3g}", f"{row['usd_off']:+.0%}",
            " to ".join(f"{speed:.0f}" for speed in row["read_gb_per_s"] or ()),
        )  # fmt: skip
    return shown


def check_fit(folder: Path, request: Request, blocks: int, weights: str) -> tuple[int, bool]:
    """Requests that the planner says fit into `blocks`, and whether the engine agrees: so many run
    at once to their ends with no preemption, and one more does not."""
    layout = kv_layout(Model.of(folder, weights).sizes)
    count = capacity.requests_that_fit(blocks, layout.block_size, request)

    def all_run(requests: int) -> bool:
        engine = Engine(
            make_config(
                model=folder, device="cpu", weight_format=weights, quality_gate="off",
                max_num_seqs=requests + 1,
                max_num_batched_tokens=max(256, requests * request.prompt_tokens),
                kv_cache_bytes=blocks * layout.block_bytes, max_model_len=request.stored_tokens + 1,
            )
        )  # fmt: skip
        assert capacity.pool_blocks(engine.runner.kv_cache.num_bytes, layout.block_bytes) == blocks
        luck = random.Random(0)
        params = parse({"max_tokens": request.output_tokens, "temperature": 0, "ignore_eos": True})
        for _ in range(requests):
            prompt = [luck.randrange(engine.vocab_size) for _ in range(request.prompt_tokens)]
            engine.submit(GenerationRequest(prompt, params, lambda _: None))
        most = 0
        while engine.step():
            most = max(most, len(engine.scheduler.running))
        engine.stop()
        return most == requests and not engine.scheduler.counters.preemptions.total()

    return count, all_run(count) and not all_run(count + 1)


def output_tokens(batch: int, context: int, least: int) -> int:
    """So many that all requests decode together for half of the time: prompts are computed a
    chunk a step, and the first ones must not have ended when the last one is through."""
    steps = -(-batch * context // usual_batched_tokens("cpu"))
    return max(least, 2 * steps)


def measured(folders: list[Path], arguments: argparse.Namespace) -> Iterator[Run]:
    points = [
        (batch, Request(context, output_tokens(batch, context, arguments.output)))
        for context in arguments.contexts
        for batch in arguments.batches
    ]
    subjects = [Subject(folder, points, arguments.weights) for folder in folders]
    try:
        for seed in range(arguments.rounds):
            for batch, request in points:
                for own in subjects:
                    yield own.run(batch, request, seed)
    finally:
        for own in subjects:
            own.close()


def read(path: Path) -> tuple[list[Model], list[Run]]:
    """Of an --out."""
    document = json.loads(path.read_text(encoding="utf-8"))
    runs = [
        Run(**{**each, "windows": tuple(Window(**own) for own in each["windows"])})
        for each in document["runs"]
    ]
    return [Model(**each) for each in document["models"]], runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL",
                        help="checkpoint folders; constants are of the first")  # fmt: skip
    parser.add_argument("--from", dest="source", type=Path, help="judge the runs of an --out again")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--output", type=int, default=128, help="tokens of an answer, at least")
    parser.add_argument("--rounds", type=int, default=3, help="of all points; medians count")
    parser.add_argument("--weights", default="auto", help="weight_format")
    parser.add_argument("--fit-blocks", type=int, default=96, help="of the pool that is tried out")
    parser.add_argument("--out", type=Path, help="constants and all numbers, as JSON")
    arguments = parser.parse_args()
    if bool(arguments.models) == bool(arguments.source):
        parser.error("give folders of models, or --from a file; one of the two")
    console = Console(highlight=False, soft_wrap=True)
    try:
        if arguments.source:
            models, runs = read(arguments.source)
        else:
            models, runs = [Model.of(own, arguments.weights) for own in arguments.models], []
    except (ConfigError, OSError, KeyError, TypeError, ValueError) as error:
        parser.error(f"{arguments.source or arguments.models[0]}: {error}")
    if arguments.source:
        efficiency, rows = judged(models, runs)
        console.print(f"Fitted on {rows[0]['model']}: {asdict(efficiency)}", table(rows), sep="\n")
        return
    with Progress(console=Console(stderr=True)) as progress:
        points = len(arguments.batches) * len(arguments.contexts)
        total = arguments.rounds * points * len(arguments.models)
        task = progress.add_task("runs", total=total)
        try:
            for run in measured(arguments.models, arguments):
                runs.append(run)
                progress.advance(task)
                console.print(
                    f"{run.model} {run.batch} x {run.prompt_tokens}: {run.total_s:.1f} s, memory "
                    f"at {run.read_bytes_per_s / 1e9:.0f} GB/s"
                )
        except KeyboardInterrupt:
            if not runs:
                raise
            console.print("Interrupted: judged by the runs so far.")
    efficiency, rows = judged(models, runs)
    if not any(run.windows for run in runs if run.model == models[0].name):
        console.print("The machine was never steady: constants of decodes are ASSUMED, not fitted.")
    console.print(f"\nFitted on {rows[0]['model']}: {asdict(efficiency)}", table(rows), sep="\n")
    fits = {}
    for folder in arguments.models:
        count, agrees = check_fit(folder, Request(128, 24), arguments.fit_blocks, arguments.weights)
        fits[folder.name] = {"requests": count, "agrees": agrees}
        said = "as the engine" if agrees else "NOT as the engine"
        blocks = arguments.fit_blocks
        console.print(f"{folder.name}: {count} requests fit into {blocks} blocks, {said}")
    if arguments.out is not None:
        document = {
            "efficiency": asdict(efficiency), "points": rows, "fits": fits, "machine": machine(),
            "versions": versions(), "models": [asdict(each) for each in models],
            "runs": [asdict(each) for each in runs],
        }  # fmt: skip
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(each["agrees"] for each in fits.values()) else 1)


if __name__ == "__main__":
    main()
