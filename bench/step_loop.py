#!/usr/bin/env python3
"""Where a decode step's time goes: the model, operators on logits, and Python's own share.

    python bench/step_loop.py MODEL [--sequences 32] [--prompt 128] [--output 128] [--rounds 3]

The engine in process, stepped here, with that many requests at once: random prompts, end of
sequence ignored. What counts are the steps that decode all of them and nothing else; medians of
these over all rounds, after one that warms up. µs of the stepping thread's CPU time, of which a
neighbour on the machine takes none:

    schedule   Scheduler.schedule()
    batch      the plan as tensors: tokens, slots, block tables
    forward    Decoder.forward(): the network
    logits     operators on logits: greedy, sample, penalize
    sample     the rest of sampling
    update     Scheduler.update()
    hand out   tokens to their receivers, which drop them here
    rest       what is left of Engine.step(): inbox, counters, gauges

Python's share is the step without forward and logits. As reading the clock takes time too, every
second step is split into these parts, and the others, of which only forward and logits are timed
apart, give the share.
--phases shows what the phases of forward took in the native kernels, mean of the threads.
--profile runs the same steps under cProfile before, which itself takes time for every call.
"""

import os

# As the server's environment has it; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import argparse
import cProfile
import json
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octavo import kernels
from octavo.benchmarks.machine import machine, versions
from octavo.config import make_config
from octavo.engine import Engine
from octavo.execution.sampler import PendingTokens
from octavo.generation import GenerationRequest
from octavo.sampling_params import SamplingParams, parse

PARTS = ("schedule", "batch", "forward", "logits", "sample", "update", "hand out", "rest")
NOT_PYTHON = ("forward", "logits")  # of every step
Step = dict[str, float]  # seconds of each part


class Parts:
    """Times calls from outside. What a part calls of another part counts for that one alone."""

    def __init__(self, engine: Engine) -> None:
        self.spent: Step = dict.fromkeys(PARTS, 0.0)
        self.splits = True  # this step into all parts
        self._inner_s = 0.0  # of the parts within the one that runs
        runner, scheduler = engine.runner, engine.scheduler
        places: list[tuple[object, str, str]] = [
            (scheduler, "schedule", "schedule"),
            (runner._batches, "build", "batch"),
            (runner.model, "forward", "forward"),
            (runner._sampler, "sample_plan", "sample"),
            (PendingTokens, "result", "sample"),
            (scheduler, "update", "update"),
            (engine, "_hand_out", "hand out"),
            (runner._sampler, "_greedy", "logits"),
            (runner._sampler, "_draw", "logits"),
            (kernels, "penalize", "logits"),
        ]
        for owner, name, part in places:
            setattr(owner, name, self.timed(part, getattr(owner, name)))
        self.step = self.timed("rest", engine.step)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        is_timed_always = part in (*NOT_PYTHON, "rest")

        def run(*arguments: Any) -> Any:
            if not (self.splits or is_timed_always):
                return call(*arguments)
            outer_s, self._inner_s = self._inner_s, 0.0
            began_s = time.thread_time()
            result = call(*arguments)
            elapsed_s = time.thread_time() - began_s
            self.spent[part] += elapsed_s - self._inner_s
            self._inner_s = outer_s + elapsed_s
            return result

        return run

    def take(self) -> Step:
        taken, self.spent = self.spent, dict.fromkeys(PARTS, 0.0)
        return taken


def load(args: argparse.Namespace) -> Engine:
    engine = Engine(
        make_config(
            model=args.model,
            dtype=args.dtype,
            num_threads=args.threads,
            max_num_seqs=args.sequences,
            max_model_len=args.prompt + args.output,
            max_num_batched_tokens=max(256, args.sequences),
            quality_gate="off",
            **({"weight_format": args.weight_format} if args.weight_format else {}),
        )
    )
    engine.runner.bind_to_thread()
    return engine


def submit(args: argparse.Namespace, engine: Engine, params: SamplingParams, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(args.sequences):
        prompt = [generator.randrange(engine.vocab_size) for _ in range(args.prompt)]
        engine.submit(GenerationRequest(prompt, params, lambda _: None))


def decodes_all(args: argparse.Namespace, engine: Engine) -> bool:
    """Whether the next step decodes every sequence, and nothing else is to be done."""
    running = engine.scheduler.running
    return len(running) == args.sequences and all(sequence.is_decoding for sequence in running)


def measure(
    args: argparse.Namespace, engine: Engine, params: SamplingParams
) -> tuple[list[Step], list[Step], Step]:
    """Steps split into all parts, the others, and the phases of the model's forward, medians."""
    library = engine.runner.library
    if library is not None:
        library.is_timed = args.phases
    phases: list[Step] = []
    parts = Parts(engine)
    split: list[Step] = []
    whole: list[Step] = []
    for number in range(-1, args.rounds):  # round −1 warms up
        submit(args, engine, params, number)
        worked = True
        while worked:
            counts = number >= 0 and decodes_all(args, engine)
            worked = parts.step()
            step = parts.take()
            if counts:
                taken = library.take_phases() if library else None
                spent_ns = taken.spent_ns if taken else {}
                phases.append({name: ns / args.threads / 1e9 for name, ns in spent_ns.items()})
                (split if parts.splits else whole).append(step)
            parts.splits = not parts.splits
        print(f"round {number}: {len(split) + len(whole)} steps", file=sys.stderr, flush=True)
    names = phases[0]
    medians = {name: statistics.median(each[name] for each in phases) for name in names}
    return split, whole, medians


def profile(args: argparse.Namespace, engine: Engine, params: SamplingParams) -> None:
    submit(args, engine, params, args.rounds)
    profiler, forward = cProfile.Profile(), engine.runner.model.forward

    def unseen(*arguments: Any) -> Any:
        profiler.disable()
        result = forward(*arguments)
        profiler.enable()
        return result

    num_steps, worked = 0, True
    while worked:
        if not decodes_all(args, engine):
            worked = engine.step()
            continue
        num_steps += 1
        engine.runner.model.forward = unseen  # type: ignore[assignment]
        worked = profiler.runcall(engine.step)
        engine.runner.model.forward = forward  # type: ignore[method-assign]
    print(f"{num_steps} decode steps without the model's forward:")
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(25)


def medians_us(split: list[Step], whole: list[Step]) -> dict[str, float]:
    """Of each part, of the step, and of Python's share with and without operators on logits."""
    found = {part: 1e6 * statistics.median(step[part] for step in split) for part in PARTS}
    for name, left_out in (
        ("step", ()), ("python + logits", ("forward",)), ("python", NOT_PYTHON)
    ):  # fmt: skip
        found[name] = 1e6 * statistics.median(
            sum(step.values()) - sum(step[part] for part in left_out) for step in whole
        )
    return found


def show(
    args: argparse.Namespace, num_steps: int, found: dict[str, float], quality: str | None
) -> None:
    name = args.model.name if quality is None else f"{args.model.name} ({quality})"
    table = Table(
        title=f"{name}: {args.sequences} sequences of {args.prompt} + {args.output} "
        f"tokens, {num_steps} decode steps, medians",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("µs", justify="right")
    for part, value in found.items():
        is_total = part not in PARTS
        table.add_row(part, f"{value:,.0f}", style="bold" if is_total else "")
    Console(highlight=False).print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--output", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--params", type=json.loads, default={"temperature": 0}, metavar="JSON",
        help='sampling parameters (default: {"temperature": 0})',
    )  # fmt: skip
    parser.add_argument("--weight-format", help="int8, int4, w8a8 or w4a8")
    parser.add_argument("--phases", action="store_true", help="those of the model's forward")
    parser.add_argument("--profile", action="store_true", help="first a round under cProfile")
    parser.add_argument("--json", type=Path, help="file for all steps")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    params = parse({**args.params, "max_tokens": args.output, "ignore_eos": True})
    engine = load(args)
    if args.profile:
        profile(args, engine, params)
    split, whole, phases = measure(args, engine, params)
    found = medians_us(split, whole)
    show(args, len(split) + len(whole), found, engine.quality.label)
    if args.phases:
        print("forward's phases, ms of time:", {k: round(1e3 * v, 3) for k, v in phases.items()})
    if args.json:
        document = {
            "benchmark": "step_loop", "versions": versions(), "machine": machine(),
            "settings": {**vars(args), "model": args.model.name, "json": None},
            "quality": engine.quality.label, "medians_us": found, "split_steps_s": split,
            "whole_steps_s": whole, "forward_phases_s": phases,
        }  # fmt: skip
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
