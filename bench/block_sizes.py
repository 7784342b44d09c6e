#!/usr/bin/env python3
"""Speed and waste of KV blocks of several sizes, engine in process.

    python bench/block_sizes.py MODEL [--sizes 4 16 64] [--prompts 128 512] [--formats auto int8]

One engine for each size and format; all get the same requests, all at once, and take turns step by
step, so that a shared machine treats them alike; what counts is the ratio. No prefix cache. Of the
medians over all steps of all rounds:

    prefill_ms   a step with a chunk of prompt in it, max_num_batched_tokens = 256 tokens
    decode_ms    a step that only decodes, one token for each sequence
    waste_ratio  share of the used blocks' slots that hold no token, mean over the decode steps
"""

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.config import make_config
from octavo.engine import Engine
from octavo.generation import GenerationRequest
from octavo.sampling_params import parse


@dataclass(slots=True)
class Side:
    """One engine and what its steps took."""

    engine: Engine
    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    waste: list[float] = field(default_factory=list)

    def submit(self, args: argparse.Namespace, prompt: int, seed: int) -> None:
        chance = random.Random(seed)
        params = parse({"temperature": 0, "max_tokens": args.output, "ignore_eos": True})
        for _ in range(args.concurrency):
            tokens = [chance.randrange(300, self.engine.vocab_size - 300) for _ in range(prompt)]
            self.engine.submit(GenerationRequest(tokens, params, lambda _: None))

    def step(self) -> bool:
        decode_s = self.engine.stats.busy_s["decode"]
        began_s = time.perf_counter()
        worked = self.engine.step()
        elapsed_s = time.perf_counter() - began_s
        if worked and self.engine.stats.busy_s["decode"] > decode_s:
            self.decode_s.append(elapsed_s)
            self.waste.append(self.engine.gauges.fragmentation_ratio)
        elif worked:
            self.prefill_s.append(elapsed_s)
        return worked

    def report(self) -> dict[str, float]:
        return {
            "prefill_ms": 1e3 * statistics.median(self.prefill_s),
            "decode_ms": 1e3 * statistics.median(self.decode_s),
            "waste_ratio": statistics.mean(self.waste),
        }


def load(args: argparse.Namespace, size: int, kv_format: str) -> Engine:
    settings: dict[str, Any] = {
        "dtype": args.dtype,
        "num_threads": args.threads,
        "block_size": size,
        "kv_cache_dtype": kv_format,
        "max_num_seqs": args.concurrency,
        "max_model_len": max(args.prompts) + args.output,
        "enable_prefix_caching": False,
        "quality_gate": "off",
    }
    engine = Engine(make_config(model=args.model, **settings))
    engine.runner.bind_to_thread()
    return engine


def run(sides: list[Side], args: argparse.Namespace, prompt: int, seed: int) -> None:
    """Until all are idle; who begins changes with every turn."""
    for side in sides:
        side.submit(args, prompt, seed)
    turn, worked = 0, True
    while worked:
        first = turn % len(sides)
        worked = any([side.step() for side in sides[first:] + sides[:first]])
        turn += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--formats", nargs="+", default=["auto"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512], help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    engines = {(f, size): load(args, size, f) for f in args.formats for size in args.sizes}
    run([Side(engine) for engine in engines.values()], args, min(args.prompts), -1)  # warms up
    for prompt in args.prompts:
        sides = {key: Side(engine) for key, engine in engines.items()}
        for number in range(args.rounds):
            run(list(sides.values()), args, prompt, number)
            print(f"prompt {prompt}: round {number}", file=sys.stderr, flush=True)
        for (kv_format, size), side in sides.items():
            own = {"format": kv_format, "block_size": size, "prompt": prompt}
            own["quality"] = side.engine.quality.label
            print(json.dumps({**own, **side.report()}), flush=True)


if __name__ == "__main__":
    main()
