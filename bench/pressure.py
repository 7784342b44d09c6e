#!/usr/bin/env python3
"""Requests on a pool of KV memory that holds a part of them: what to do when it is full.

    python bench/pressure.py MODEL [--requests 64] [--in 512] [--out 256] [--pool 0.25] [--rounds 3]

All requests are sent at once: random prompts, greedy, end of sequence ignored. The pool is that
share of what all of them hold at their longest. Variants, in turn in each round:

fits N      admits only as many as fit whole, and fewer: nobody is ever preempted
recompute   admits what fits now; who is preempted is computed again
swap        who is preempted moves to a host tier, over links of several rates
auto        the engine chooses for each

output tokens/s = all output tokens / (submission → last token of all). The longest wait is the
longest of any request from submission to its first token, and between two of its tokens. Out and in
are blocks that leave the pool for a tier and come back. Medians of the rounds. Swap and auto need
an engine with the settings `preemption` and `kv_tiers`.
"""

import os

# As the server's environment has it; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octavo.benchmarks.load import kv_token_bytes, run_load
from octavo.benchmarks.machine import machine, versions
from octavo.benchmarks.records import LoadRecord
from octavo.config import EngineConfig, make_config
from octavo.engine import Engine

FITS_SHARES = (1.0, 0.75, 0.5)  # of what fits whole: a smaller batch may pay in shorter steps
LINKS_BYTES_PER_S = {"30 MB/s": 30e6, "170 MB/s": 170e6, "10 GB/s": 10e9}
KINDS = ("fits", "recompute", "swap", "auto")
Settings = dict[str, Any]  # of EngineConfig


@dataclass(frozen=True, slots=True)
class Pool:
    """Bytes of KV memory, and how many requests fit whole."""

    num_bytes: int
    demand_bytes: int
    num_fit: int


def make_pool(args: argparse.Namespace) -> Pool:
    block_bytes = args.block_size * kv_token_bytes(args.model, args.dtype)
    blocks_each = -(-(args.input + args.output) // args.block_size)
    demand = args.requests * blocks_each
    blocks = max(blocks_each, int(args.pool * demand))
    return Pool(blocks * block_bytes, demand * block_bytes, blocks // blocks_each)


def make_variants(args: argparse.Namespace, pool: Pool) -> dict[str, Settings]:
    fits = sorted({max(1, round(share * pool.num_fit)) for share in FITS_SHARES}, reverse=True)
    variants: dict[str, Settings] = {f"fits {n}": {"max_num_seqs": n} for n in fits}
    # An engine without the setting has nothing else.
    has_choice = "preemption" in EngineConfig.__dataclass_fields__
    variants["recompute"] = {"preemption": "recompute"} if has_choice else {}
    for kind in ("swap", "auto"):
        for name, rate in LINKS_BYTES_PER_S.items():
            tiers = {"host_bytes": pool.demand_bytes, "host_link_bytes_per_s": rate}
            variants[f"{kind}, {name}"] = {"preemption": kind, "kv_tiers": tiers}
    return {name: own for name, own in variants.items() if name.startswith(tuple(args.variants))}


def make_configs(args: argparse.Namespace) -> dict[str, EngineConfig]:
    """All before the first run. Raises ConfigError if the engine has not a variant's settings."""
    pool = make_pool(args)
    common: Settings = {
        "model": args.model,
        "dtype": args.dtype,
        "num_threads": args.threads,
        "block_size": args.block_size,
        "max_model_len": args.input + args.output,
        "max_num_seqs": args.requests,
        "max_num_batched_tokens": max(256, args.requests),
        "kv_cache_bytes": pool.num_bytes,
        "quality_gate": "off",
    }
    variants = make_variants(args, pool)
    return {name: make_config(**{**common, **own}) for name, own in variants.items()}


def run(args: argparse.Namespace, name: str, config: EngineConfig, number: int) -> LoadRecord:
    """With an engine of its own, so that one copy of the weights is in memory at a time."""
    engine = Engine(config)
    engine.runner.bind_to_thread()
    generator = random.Random(number)

    def prompts(count: int) -> list[list[int]]:
        return [
            [generator.randrange(engine.vocab_size) for _ in range(args.input)]
            for _ in range(count)
        ]

    load_prompts = prompts(args.requests)
    run_load(engine, prompts(1), 4)  # warms up
    load = run_load(engine, load_prompts, args.output)
    engine.stop()  # ends the threads of tiers
    # Bytes of a tier are known by these; without them the table would show 0.
    assert name.startswith(("fits", "recompute")) or "saved_blocks" in load.counters
    return load


def preemptions(load: LoadRecord) -> dict[str, int]:
    """By kind."""
    counted = {
        name.partition(".")[2] or "recompute": count
        for name, count in load.counters.items()
        if name.partition(".")[0] == "preemptions"
    }
    return {kind: count for kind, count in counted.items() if count}


def megabytes(load: LoadRecord, counter: str) -> float:
    return load.counted(counter) * load.block_bytes / 1e6


Figure = Callable[[LoadRecord], float]
FIGURES: dict[str, tuple[str, Figure]] = {
    "output_tps": ("output tokens/s", lambda load: load.output_tps),
    "recomputed_tokens": ("recomputed tokens", lambda load: load.counted("recomputed_tokens")),
    "swapped_out_mb": ("out, MB", lambda load: megabytes(load, "saved_blocks")),
    "swapped_in_mb": ("in, MB", lambda load: megabytes(load, "loaded_blocks")),
    "ttft_max_s": ("longest TTFT, s", lambda load: max(r.ttft_s for r in load.requests)),
    "gap_max_s": ("longest gap, s", lambda load: max(r.longest_gap_s for r in load.requests)),
    "e2e_p50_s": ("e2e p50, s", lambda load: statistics.median(r.e2e_s for r in load.requests)),
    "e2e_max_s": ("e2e max, s", lambda load: max(r.e2e_s for r in load.requests)),
    "peak_running": ("at once", lambda load: load.peak_running),
}
Medians = dict[str, dict[str, float]]  # by variant and figure


def medians(rounds: dict[str, list[LoadRecord]]) -> Medians:
    return {
        variant: {
            name: statistics.median(figure(load) for load in loads)
            for name, (_, figure) in FIGURES.items()
        }
        for variant, loads in rounds.items()
        if loads
    }


def best_fitting(found: Medians) -> str | None:
    fitting = [variant for variant in found if variant.startswith("fits")]
    return max(fitting, key=lambda variant: found[variant]["output_tps"], default=None)


def show(args: argparse.Namespace, rounds: dict[str, list[LoadRecord]], found: Medians) -> None:
    table = Table(
        title=f"{args.model.name}: {args.requests} requests of {args.input} + {args.output} "
        f"tokens on a pool of {args.pool:g} of their demand",
        title_justify="left",
    )
    table.add_column("")
    for heading in [heading for heading, _ in FIGURES.values()] + ["preemptions"]:
        table.add_column(heading, justify="right")
    table.add_column("/ best fits", justify="right")
    best = best_fitting(found)
    for variant, values in found.items():
        kinds = ", ".join(f"{n} {kind}" for kind, n in preemptions(rounds[variant][-1]).items())
        ratio = f"{values['output_tps'] / found[best]['output_tps']:.2f}" if best else "–"
        shown = [shown_number(value) for value in values.values()]
        quality = rounds[variant][-1].quality
        row = variant if quality is None else f"{variant}, {quality}"
        table.add_row(row, *shown, kinds or "0", ratio, style="bold" if variant == best else "")
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def shown_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.2f}"


def draw(args: argparse.Namespace, found: Medians) -> None:
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(11, 0.9 + 0.42 * len(found)), layout="constrained")
    rate, wait = picture.subplots(1, 2, sharey=True)
    names, values = list(found), list(found.values())
    colors = ["#2f6fab" if name.startswith("fits") else "#d9822b" for name in names]
    bars = rate.barh(names, [v["output_tps"] for v in values], color=colors)
    rate.bar_label(bars, fmt="%.0f", padding=3)
    rate.set_title("output tokens/s", loc="left", fontsize=10)
    rate.margins(x=0.12)
    rate.invert_yaxis()
    places = range(len(names))
    for shift, figure, label, color in (
        (-0.2, "ttft_max_s", "submitted → first token", "#9dbfdd"),
        (0.2, "gap_max_s", "between two tokens", "#444444"),
    ):
        lengths = [v[figure] for v in values]
        bars = wait.barh([y + shift for y in places], lengths, 0.38, color=color, label=label)
        wait.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    wait.set_title("longest wait of any request, s", loc="left", fontsize=10)
    wait.margins(x=0.12)
    wait.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    for axes in (rate, wait):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(left=False)
    picture.suptitle(
        f"{args.model.name}: {args.requests} requests of {args.input} + {args.output} tokens on a "
        f"pool of {args.pool:g} of their demand",
        fontsize=11,
    )
    picture.savefig(args.plot, dpi=160)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--in", dest="input", type=int, default=512, help="prompt tokens")
    parser.add_argument("--out", dest="output", type=int, default=256, help="output tokens")
    parser.add_argument("--pool", type=float, default=0.25, help="share of the demand")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument(
        "--variants", nargs="+", default=list(KINDS), metavar="NAME",
        help='names of variants, or how they begin: "fits 16" swap (default: all)',
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--json", type=Path, help="file for all rounds")
    parser.add_argument("--plot", type=Path, help="picture")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    configs = make_configs(args)
    rounds: dict[str, list[LoadRecord]] = {name: [] for name in configs}
    try:
        for number in range(args.rounds):
            for name, config in configs.items():
                load = run(args, name, config, number)
                if name.startswith("fits"):
                    assert not preemptions(load), (name, load.counters)
                rounds[name].append(load)
                text = f"round {number}: {name}: {load.output_tps:.1f} tok/s"
                print(text, f"in {load.duration_s:.0f} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped; what was measured:", file=sys.stderr)
    found = medians(rounds)
    show(args, rounds, found)
    if args.plot:
        draw(args, found)
    if args.json:
        document = {
            "benchmark": "pressure", "versions": versions(), "machine": machine(),
            "settings": {**vars(args), "model": args.model.name, "json": None, "plot": None},
            "pool": asdict(make_pool(args)), "medians": found, "best_fits": best_fitting(found),
            "rounds": {name: [asdict(load) for load in loads] for name, loads in rounds.items()},
        }  # fmt: skip
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
