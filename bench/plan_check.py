#!/usr/bin/env python3
"""Does the planner predict this machine? Fits its constants on one model and predicts another.

    python bench/plan_check.py bench-150m bench-1b --out constants.json

Both models are measured at each batch and context, with the machine's peaks before and after. The
constants are fitted on the first model alone; then TPOT and cost of both are predicted and set
beside what was measured, and the requests that fit into a pool are tried out on the engine.

    TPOT    the median step that decodes all requests and nothing else
    cost    dollars per million output tokens of the whole run with its prompts, a dollar an hour

`octavo plan --constants constants.json` takes what --out writes. Run it on a quiet machine.
"""

import os

# As the server's environment has it; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octavo.benchmarks.engine_speed import Options
from octavo.benchmarks.engine_speed_worker import measure
from octavo.benchmarks.machine import machine, versions
from octavo.config import make_config
from octavo.engine import Engine
from octavo.generation import GenerationRequest
from octavo.models.model_config import read_model_config
from octavo.models.sizes import model_sizes
from octavo.planner import capacity, cost
from octavo.planner.capacity import Request
from octavo.planner.fitting import (
    DecodeSample,
    Peaks,
    PrefillSample,
    fit_efficiency,
    predicted_step_s,
)
from octavo.planner.latency import Efficiency, Loaded, decode_step_s, prefill_s
from octavo.planner.model import ModelSizes, format_of, kv_layout, kv_token_bytes, weight_bytes
from octavo.planner.roofline import mean_decode_context_tokens
from octavo.planner.setup import usual_batched_tokens
from octavo.sampling_params import parse

USD_PER_HOUR = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """One batch at one context of one model, as measured. total_s: of the run"""

    model: str
    request: Request
    decode: DecodeSample
    prefill: PrefillSample
    total_s: float

    @property
    def batch(self) -> int:
        return self.decode.sequences

    def predicted_total_s(self, efficiency: Efficiency) -> float:
        """All prompts at once, beside decodes of those that are through, and then the decodes of
        the last."""
        own, speed = self.decode, self.decode.peaks.speed(efficiency)
        prompt, chunk = self.request.prompt_tokens, self.prefill.chunk_tokens
        prompts_s = self.batch * prefill_s(own.loaded, speed, prompt, 0, chunk)
        steps = -(-self.batch * prompt // chunk)
        beside_s = decode_step_s(own.loaded, speed, (self.batch - 1) / 2, own.context_tokens)
        decodes_s = (self.request.output_tokens - 1) * predicted_step_s(own, efficiency)
        return prompts_s + steps * beside_s + decodes_s

    def usd_per_million(self, total_s: float) -> float:
        tokens = self.batch * self.request.output_tokens
        return cost.usd_per_million_good_tokens(tokens, total_s, USD_PER_HOUR)


def sizes(folder: Path, dtype: str = "auto") -> ModelSizes:
    return model_sizes(read_model_config(folder), folder.name, dtype)


def points(folder: Path, lines: list[dict[str, Any]]) -> list[Point]:
    """Of the lines that `octavo bench engine` gives."""
    found = []
    for line in lines:
        if "error" in line:
            raise SystemExit(f"{folder.name} {line['workload']}: {line['error']}")
        model = sizes(folder, line["dtype"])
        own = format_of(model, setting(line))
        weights, token_bytes = weight_bytes(model, own), kv_token_bytes(kv_layout(model))
        loaded = Loaded(model, weights.step, token_bytes, own.weight_bits)
        prompt, output, batch = (int(part[1:]) for part in line["workload"].split("-"))
        peaks = Peaks(line["read_gbs"] * 1e9, line["matrix_gflops"] * 1e9)
        step_s = (line["forward_us"] + line["host_us"]) / 1e6
        context = mean_decode_context_tokens(prompt, output)
        found.append(
            Point(
                folder.name,
                Request(prompt, output),
                DecodeSample(loaded, peaks, batch, context, step_s),
                PrefillSample(loaded, peaks, prompt, line["max_batched_tokens"], line["ttft_s"]),
                line["total_s"],
            )
        )
    return found


def setting(line: dict[str, Any]) -> str:
    """The weight_format that a line was measured with."""
    return "auto" if line["weight_format"] == line["dtype"] else str(line["weight_format"])


def fitted(own: list[Point]) -> Efficiency:
    """Prompts of one request alone: in those of several, TTFT is the queue's."""
    alone = [each.prefill for each in own if each.batch == 1]
    return fit_efficiency([each.decode for each in own], alone)


def check_fit(folder: Path, request: Request, blocks: int, kernels: str) -> tuple[int, bool]:
    """Requests that the planner says fit into `blocks`, and whether the engine agrees: so many run
    at once to their ends with no preemption, and one more does not."""
    model = sizes(folder)
    layout = kv_layout(model)
    count = capacity.requests_that_fit(blocks, layout.block_size, request)

    def all_run(requests: int) -> bool:
        engine = Engine(
            make_config(
                model=folder, device="cpu", kernels=kernels, max_num_seqs=requests + 1,
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


def table(own: list[Point], efficiency: Efficiency) -> Table:
    shown = Table(box=None, pad_edge=False)
    headings = ("model", "batch", "context", "TPOT, ms", "predicted", "off", "$/M", "predicted",
                "off", "GB/s")  # fmt: skip
    for index, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if index else "left")
    for each in own:
        row = compared(each, efficiency)
        shown.add_row(
            each.model, str(each.batch), str(each.request.prompt_tokens),
            f"{row['tpot_ms']:.2f}", f"{row['predicted_tpot_ms']:.2f}", f"{row['tpot_off']:+.0%}",
            f"{row['usd']:.3g}", f"{row['predicted_usd']:.3g}", f"{row['usd_off']:+.0%}",
            f"{each.decode.peaks.read_bytes_per_s / 1e9:.1f}",
        )  # fmt: skip
    return shown


def compared(each: Point, efficiency: Efficiency) -> dict[str, Any]:
    step_s = predicted_step_s(each.decode, efficiency)
    usd = each.usd_per_million(each.total_s)
    predicted_usd = each.usd_per_million(each.predicted_total_s(efficiency))
    return {
        "model": each.model,
        "batch": each.batch,
        "prompt_tokens": each.request.prompt_tokens,
        "output_tokens": each.request.output_tokens,
        "read_bytes_per_s": each.decode.peaks.read_bytes_per_s,
        "flops_per_s": each.decode.peaks.flops_per_s,
        "tpot_ms": each.decode.step_s * 1e3,
        "predicted_tpot_ms": step_s * 1e3,
        "tpot_off": step_s / each.decode.step_s - 1,
        "usd": usd,
        "predicted_usd": predicted_usd,
        "usd_off": predicted_usd / usd - 1,
    }


def output_tokens(batch: int, context: int, least: int) -> int:
    """So many that all requests decode together for half of the time: prompts are computed a
    chunk a step, and the first ones must not have ended when the last one is through."""
    steps = -(-batch * context // usual_batched_tokens("cpu"))
    return max(least, 2 * steps)


def measured(folder: Path, arguments: argparse.Namespace, console: Console) -> list[Point]:
    names = [
        f"p{context}-g{output_tokens(batch, context, arguments.output)}-c{batch}"
        for context in arguments.contexts
        for batch in arguments.batches
    ]
    settings = {
        "kernels": arguments.kernels,
        "weight_format": arguments.weights,
        "enable_prefix_caching": "false",
    }
    if arguments.kv_memory:
        settings["kv_cache_bytes"] = arguments.kv_memory
    if arguments.threads:
        settings["num_threads"] = str(arguments.threads)
    options = Options(
        model=str(folder), workloads=tuple(names), runs=arguments.runs, settings=settings
    )
    lines = []
    for line in measure(options):
        lines.append(line)
        console.print(f"{folder.name} {line['workload']}: {line.get('decode_tps', '–')} tokens/s")
    return points(folder, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fit", type=Path, help="checkpoint folder that the constants are fitted on")
    parser.add_argument("predict", type=Path, nargs="*", help="folders that are predicted")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer, at least")
    parser.add_argument("--runs", type=int, default=3, help="of each point; medians count")
    parser.add_argument("--weights", default="auto", help="weight_format")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--kv-memory", default="", help="such as 2GiB")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--fit-blocks", type=int, default=96, help="of the pool that is tried out")
    parser.add_argument("--out", type=Path, help="constants and all numbers, as JSON")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    by_model = {
        folder: measured(folder, arguments, console)
        for folder in (arguments.fit, *arguments.predict)
    }
    efficiency = fitted(by_model[arguments.fit])
    everything = [each for own in by_model.values() for each in own]
    console.print()
    console.print(f"Fitted on {arguments.fit.name}: {asdict(efficiency)}")
    console.print(table(everything, efficiency))
    fits = {}
    for folder in by_model:
        request = Request(arguments.contexts[0], 24)
        count, agrees = check_fit(folder, request, arguments.fit_blocks, arguments.kernels)
        fits[folder.name] = {"requests": count, "agrees": agrees}
        said = "as the engine" if agrees else "NOT as the engine"
        blocks = arguments.fit_blocks
        console.print(f"{folder.name}: {count} requests fit into {blocks} blocks, {said}")
    if arguments.out is not None:
        document = {
            "efficiency": asdict(efficiency),
            "points": [compared(each, efficiency) for each in everything],
            "fits": fits,
            "machine": machine(),
            "versions": versions(),
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(each["agrees"] for each in fits.values()) else 1)


if __name__ == "__main__":
    main()
