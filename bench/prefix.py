#!/usr/bin/env python3
"""What the prefix cache costs where it finds nothing, and gives where it finds something.

    python bench/prefix.py MODEL [--rounds 5] [--json FILE]

Cost: requests with random prompts, in turn with the cache and without, on a pool that holds only
those that run, so that cached blocks are evicted too. CPU time of the stepping thread inside
Scheduler.schedule() and update(), with the cache minus without, as a share of its CPU time in whole
steps without. CPU time, because a neighbour on the machine takes none of it.

Gain: requests at once that share a prefix and differ in their last tokens; with the cache off, with
an empty cache, and after one other request with that prefix. TTFT is submitted → first token, in
the engine. On an empty cache the least to compute is the prefix once and each suffix. A step's
budget below the prefix comes to that by itself, as the second request is admitted when the first
has its prefix; so the computed tokens are also counted with a budget that takes all in one step.
"""

import os

# As the server's environment has it; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octavo.benchmarks.load import kv_token_bytes, run_load
from octavo.benchmarks.machine import machine, versions
from octavo.benchmarks.records import LoadRecord
from octavo.config import make_config
from octavo.engine import Engine

COST_LIMIT_RATIO = 0.02
WARM_LIMIT_RATIO = 0.2
BLOCK_SIZE = 16
OFF, COLD, WARM = "cache off", "empty cache", "prefix cached"


def build(
    args: argparse.Namespace,
    *,
    num_seqs: int,
    tokens_each: int,
    cache: bool,
    step_tokens: int = 256,
) -> Engine:
    """With a pool for `num_seqs` sequences, and one more for the watermark."""
    blocks = (num_seqs + 1) * -(-tokens_each // BLOCK_SIZE)
    engine = Engine(
        make_config(
            model=args.model,
            dtype=args.dtype,
            num_threads=args.threads,
            block_size=BLOCK_SIZE,
            max_model_len=tokens_each,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(step_tokens, num_seqs),
            kv_cache_bytes=blocks * BLOCK_SIZE * kv_token_bytes(args.model, args.dtype),
            enable_prefix_caching=cache,
            quality_gate="off",
        )
    )
    engine.runner.bind_to_thread()
    return engine


class CPUTime:
    """CPU seconds of this thread inside a call of an object's, added up."""

    def __init__(self, owner: object, name: str) -> None:
        self.total_s = 0.0
        self._call: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, self._timed)

    def _timed(self, *arguments: Any) -> Any:
        began_s = time.thread_time()
        result = self._call(*arguments)
        self.total_s += time.thread_time() - began_s
        return result


def cost(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry a round."""
    tokens_each = args.prompt + args.output
    engines = {
        cache: build(args, num_seqs=args.concurrency, tokens_each=tokens_each, cache=cache)
        for cache in (False, True)
    }
    meters = {
        cache: [CPUTime(engine.scheduler, "schedule"), CPUTime(engine.scheduler, "update")]
        for cache, engine in engines.items()
    }
    vocab_size = engines[True].vocab_size
    rounds = []
    for number in range(-1, args.rounds):  # round −1 warms up, and fills the pool
        measured: dict[str, Any] = {}
        for cache in (False, True) if number % 2 else (True, False):
            generator = random.Random(number)
            prompts = [
                [generator.randrange(vocab_size) for _ in range(args.prompt)]
                for _ in range(args.requests)
            ]
            engine, steps = engines[cache], engines[cache].stats.steps
            for meter in meters[cache]:
                meter.total_s = 0.0
            evicted = engine.scheduler.allocator.evictions.total()
            began_s, began_cpu_s = time.perf_counter(), time.thread_time()
            load = run_load(engine, prompts, args.output)
            assert load.hit_tokens == 0
            measured["on" if cache else "off"] = {
                "scheduler_cpu_s": sum(meter.total_s for meter in meters[cache]),
                "cpu_s": time.thread_time() - began_cpu_s,
                "wall_s": time.perf_counter() - began_s,
                "steps": engine.stats.steps - steps,
                "evictions": engine.scheduler.allocator.evictions.total() - evicted,
                "quality": load.quality,
            }
        assert measured["on"]["steps"] == measured["off"]["steps"]
        extra_s = measured["on"]["scheduler_cpu_s"] - measured["off"]["scheduler_cpu_s"]
        measured["share_ratio"] = extra_s / measured["off"]["cpu_s"]
        measured["share_of_wall_ratio"] = extra_s / measured["off"]["wall_s"]
        say(f"cost, round {number}: {100 * measured['share_ratio']:.2f} % of a step")
        if number >= 0:
            assert measured["on"]["evictions"] > 0
            rounds.append(measured)
    return rounds


def gain(args: argparse.Namespace) -> list[dict[str, LoadRecord]]:
    """One entry a round: the load of each side."""
    tokens_each = args.prefix + args.suffix + args.gain_output
    without, with_cache = (
        build(args, num_seqs=args.sharers, tokens_each=tokens_each, cache=cache)
        for cache in (False, True)
    )
    rounds = []
    for number in range(-1, args.rounds):  # round −1 warms up
        generator = random.Random(1000 + number)

        def random_tokens(count: int, generator: random.Random = generator) -> list[int]:
            return [generator.randrange(without.vocab_size) for _ in range(count)]

        def prompts(prefix: list[int], tokens: Callable[[int], list[int]]) -> list[list[int]]:
            return [prefix + tokens(args.suffix) for _ in range(args.sharers)]

        shared, unseen = random_tokens(args.prefix), random_tokens(args.prefix)
        loads = {OFF: run_load(without, prompts(shared, random_tokens), args.gain_output)}
        loads[COLD] = run_load(with_cache, prompts(unseen, random_tokens), args.gain_output)
        run_load(with_cache, [shared + random_tokens(args.suffix)], args.gain_output)
        loads[WARM] = run_load(with_cache, prompts(shared, random_tokens), args.gain_output)
        assert loads[OFF].hit_tokens == 0
        assert loads[WARM].hit_tokens == args.sharers * (args.prefix // BLOCK_SIZE * BLOCK_SIZE)
        shown = ", ".join(f"{side} {1e3 * ttft_s(load):.0f} ms" for side, load in loads.items())
        say(f"gain, round {number}: TTFT p50 {shown}")
        if number >= 0:
            rounds.append(loads)
    return rounds


def in_one_step(args: argparse.Namespace) -> LoadRecord:
    """The gain's requests on an empty cache, with a budget for all their tokens in one step."""
    tokens_each = args.prefix + args.suffix + args.gain_output
    engine = build(
        args,
        num_seqs=args.sharers,
        tokens_each=tokens_each,
        cache=True,
        step_tokens=args.sharers * tokens_each,
    )
    generator = random.Random(2000)
    tokens = [generator.randrange(engine.vocab_size) for _ in range(args.prefix)]
    suffixes = [
        [generator.randrange(engine.vocab_size) for _ in range(args.suffix)]
        for _ in range(args.sharers)
    ]
    return run_load(engine, [tokens + suffix for suffix in suffixes], args.gain_output)


def ttft_s(load: LoadRecord) -> float:
    return statistics.median(request.ttft_s for request in load.requests)


def slowest_s(load: LoadRecord) -> float:
    return max(request.ttft_s for request in load.requests)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show_cost(args: argparse.Namespace, rounds: list[dict[str, Any]], console: Console) -> float:
    """The median share."""

    def per_step_us(name: str, side: str) -> float:
        return float(statistics.median(1e6 * r[side][name] / r[side]["steps"] for r in rounds))

    table = Table(
        title=f"0 % hits: {args.requests} requests of {args.prompt} + {args.output} tokens, "
        f"{args.concurrency} at once",
        title_justify="left",
    )
    for heading in ("", "scheduler, µs CPU a step", "step, µs CPU", "step, µs", "evictions"):
        table.add_column(heading, justify="right" if heading else "left")
    for side in ("off", "on"):
        table.add_row(
            label(f"cache {side}", rounds[-1][side]["quality"]),
            *(f"{per_step_us(n, side):,.0f}" for n in ("scheduler_cpu_s", "cpu_s", "wall_s")),
            str(rounds[-1][side]["evictions"]),
        )
    console.print(table)
    share: float = statistics.median(r["share_ratio"] for r in rounds)
    each = ", ".join(f"{100 * r['share_ratio']:.2f}" for r in rounds)
    console.print(
        f"cost: {100 * share:.2f} % of a step's CPU time (rounds: {each}); "
        f"limit {100 * COST_LIMIT_RATIO:g} %: {verdict(share <= COST_LIMIT_RATIO)}\n"
    )
    return share


def label(row: str, quality: str | None) -> str:
    return row if quality is None else f"{row}, {quality}"


def show_gain(
    args: argparse.Namespace,
    rounds: list[dict[str, LoadRecord]],
    one_step: LoadRecord,
    console: Console,
) -> dict[str, float]:
    """The warm TTFT as a share of that of the other sides."""
    table = Table(
        title=f"{args.sharers} requests at once, {args.prefix} tokens in common and "
        f"{args.suffix} of their own",
        title_justify="left",
    )
    for heading in ("", "TTFT p50, ms", "TTFT max, ms", "computed tokens", "hit tokens"):
        table.add_column(heading, justify="right" if heading else "left")
    for side in (OFF, COLD, WARM):
        loads = [loads[side] for loads in rounds]
        table.add_row(
            label(side, loads[-1].quality),
            f"{1e3 * statistics.median(map(ttft_s, loads)):,.0f}",
            f"{1e3 * statistics.median(map(slowest_s, loads)):,.0f}",
            *(f"{getattr(loads[-1], name):,}" for name in ("prefill_tokens", "hit_tokens")),
        )
    console.print(table)
    ratios = {
        side: statistics.median(ttft_s(loads[WARM]) / ttft_s(loads[side]) for loads in rounds)
        for side in (OFF, COLD)
    }
    for side, ratio in ratios.items():
        limit = f"; limit {WARM_LIMIT_RATIO:g}: {verdict(ratio <= WARM_LIMIT_RATIO)}"
        console.print(f"TTFT p50, {WARM} / {side}: {ratio:.3f}{limit if side == OFF else ''}")
    least = args.prefix + args.sharers * args.suffix
    for load, budget in ((rounds[-1][COLD], "256 tokens"), (one_step, "all of them")):
        console.print(
            f"computed on an empty cache, a step's budget being {budget}: "
            f"{load.prefill_tokens:,} tokens; prefix once and each suffix: {least:,}: "
            f"{verdict(load.prefill_tokens == least)}",
            soft_wrap=True,
        )
    return ratios


def verdict(holds: bool) -> str:
    return "kept" if holds else "NOT KEPT"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--parts", nargs="+", default=["cost", "gain"], choices=("cost", "gain"))
    parser.add_argument("--requests", type=int, default=32, help="cost: requests")
    parser.add_argument("--concurrency", type=int, default=16, help="cost: of them at once")
    parser.add_argument("--prompt", type=int, default=256, help="cost: prompt tokens")
    parser.add_argument("--output", type=int, default=64, help="cost: output tokens")
    parser.add_argument("--sharers", type=int, default=8, help="gain: requests at once")
    parser.add_argument("--prefix", type=int, default=1024, help="gain: tokens in common")
    parser.add_argument("--suffix", type=int, default=32, help="gain: tokens of each's own")
    parser.add_argument("--gain-output", type=int, default=4, help="gain: output tokens")
    parser.add_argument("--json", type=Path, help="file for all rounds")
    args = parser.parse_args()
    console = Console(highlight=False)
    found: dict[str, Any] = {"benchmark": "prefix", "versions": versions(), "machine": machine()}
    found["settings"] = {**vars(args), "model": args.model.name, "json": None}
    if "cost" in args.parts:
        found["cost"] = cost(args)
        found["cost_share_ratio"] = show_cost(args, found["cost"], console)
    if "gain" in args.parts:
        found["gain"] = gain(args)
        found["in_one_step"] = in_one_step(args)
        found["warm_ttft_ratios"] = show_gain(args, found["gain"], found["in_one_step"], console)
    if args.json:
        args.json.write_text(json.dumps(found, default=asdict, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
