#!/usr/bin/env python3
"""All that is claimed of a GPU, in one go, with nothing to download; ends with one table.

    python bench/gpu.py [--out bench/results/gpu.jsonl] [--only decode,throughput] [--models DIR]
    python bench/gpu.py --quick --device cpu     the script itself, on a toy model, anywhere

Checkpoints with random weights of the named shapes are written to --models at first. Each check
is a process of its own, so that none finds memory that another one left. A check that cannot be
done says why; a line that failed makes the exit status 1.

tokens      greedy tokens equal the reference's in fp32 on a tiny model; log probabilities in bf16
decode      one sequence: tokens/s, and MBU: bytes_per_step over a step's time and over the read
            bandwidth that the same run measures
throughput  256 sequences, prompts and outputs uniform in 100 to 1,024 (nano-vllm's workload)
attention   a decode's attention at 32,768 tokens of context: time over the time of its bytes
transformers  64 sequences through transformers' generate, and the same through our engine
idle        64 sequences decoding: share of the time in which no kernel runs (torch's profiler; the
            trace lies beside --out)
tests       pytest tests/kernels/gpu, on the GPU itself
server      64 gRPC streams against the same requests in process (bench/streams.py)
"""

import argparse
import gc
import importlib.util
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128_256, True),
    "llama-3.1-8b": Shape(4096, 14_336, 32, 32, 8, 128, 128_256, False),
    "toy": Shape(128, 256, 2, 4, 2, 64, 1024, True),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One line: `value` against `target`, the least (or most) that is asked for."""

    check: str
    what: str
    value: float
    unit: str
    target: str = ""
    holds: bool | None = None

    @classmethod
    def least(cls, check: str, what: str, value: float, unit: str, target: float) -> "Result":
        return cls(check, what, value, unit, f"≥ {target:,g}", value >= target)

    @classmethod
    def most(cls, check: str, what: str, value: float, unit: str, target: float) -> "Result":
        return cls(check, what, value, unit, f"≤ {target:,g}", value <= target)


# Checks. Each gets the arguments and tells its results as they come.


def tests(args: argparse.Namespace) -> Iterator[Result]:
    command = [sys.executable, "-m", "pytest", "-q", "tests/kernels/gpu"]
    if args.quick:
        command += ["-k", "blocks"]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", "12"]  # hundreds of kernels to compile
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    yield Result("tests", summary, done.returncode, "exit status", "0", done.returncode == 0)


def tokens(args: argparse.Namespace) -> Iterator[Result]:
    prompts = [ids(length, 500, length) for length in (3, 17, 64, 200)]
    for dtype in ("float32", "bfloat16"):
        folder = checkpoint(args, "toy", dtype)
        runs = []
        for device, kernels in ((args.device, "auto"), ("cpu", "reference")):
            with engine(args, folder, device=device, kernels=kernels, dtype=dtype) as own:
                runs.append(own.generate(prompts, greedy(32, logprobs=5)))
        ours, wanted = ([r.token_ids for r in run] for run in runs)
        if dtype == "float32":
            same = sum(a == b for a, b in zip(ours, wanted, strict=True)) / len(prompts)
            yield Result.least("tokens", "fp32 outputs as the reference's", same, "", 1)
        pairs = [
            abs(a.logprob - b.logprob)
            for ours_, wanted_ in zip(*runs, strict=True)
            for a, b in zip(ours_.logprobs[:1], wanted_.logprobs[:1], strict=True)
        ]
        limit = 1e-4 if dtype == "float32" else 0.1
        what = f"{dtype} log probabilities of first tokens differ by"
        yield Result.most("tokens", what, max(pairs), "", limit)


def decode(args: argparse.Namespace) -> Iterator[Result]:
    for name, least in chosen(args, {"llama-3.2-1b": 0.6, "llama-3.1-8b": 0.8}):
        folder, rates = checkpoint(args, name), {}
        for weights in ("auto",) if name == "llama-3.2-1b" else ("auto", "int4"):
            with engine(args, folder, weight_format=weights) as own:
                rates[weights] = rate = decode_rate(own, 1, 128, 8 if args.quick else 256)
                bandwidth = read_bandwidth(own.runner.device)
                step_bytes = (
                    own.runner.model.step_weight_bytes
                    + 256 * own.runner.kv_cache.block_bytes / own.runner.block_size
                )
                mbu = rate * step_bytes / bandwidth
            label = f"{name} {'bf16' if weights == 'auto' else f'{weights} (ungated)'}, batch 1"
            yield Result("decode", label, rate, "tokens/s")
            yield Result("decode", f"{label}: read bandwidth", bandwidth / 1e9, "GB/s")
            asked = least if weights == "auto" else 0
            yield Result.least("decode", f"{label}: MBU", mbu, "", asked)
        if name.endswith("8b"):
            ratio = rates["int4"] / rates["auto"]
            yield Result.least("decode", f"{name} int4 (ungated) over bf16", ratio, "×", 2.2)


def throughput(args: argparse.Namespace) -> Iterator[Result]:
    count, shortest, longest = (6, 10, 40) if args.quick else (256, 100, 1024)
    for name, least in chosen(args, {"llama-3.2-1b": 25_000, "llama-3.1-8b": 9_000}):
        generator = random.Random(0)
        requests = [
            (
                ids(generator.randint(shortest, longest), 1000, i),
                generator.randint(shortest, longest),
            )
            for i in range(count)
        ]
        with engine(
            args, checkpoint(args, name), max_num_seqs=count, max_num_batched_tokens=8192
        ) as own:
            run(own, requests[:2])
            seconds = run(own, requests)
        rate = sum(output for _, output in requests) / seconds
        yield Result.least("throughput", f"{name}, {count} sequences", rate, "tokens/s", least)


def attention(args: argparse.Namespace) -> Iterator[Result]:
    import torch

    if args.device == "cpu":
        yield Result("attention", "needs a GPU", 0, "")
        return
    from octavo.kernels.gpu import paged_attention

    context, heads, groups, dim, block = 32_768, 32, 8, 128, 16
    for sequences in (1, 16):
        blocks = sequences * context // block
        keys, values = (
            torch.randn(blocks, block, groups, dim, device="cuda").bfloat16() for _ in range(2)
        )
        call = partial(
            paged_attention,
            torch.randn(sequences, heads, dim, device="cuda").bfloat16(),
            keys,
            values,
            torch.randperm(blocks, device="cuda").view(sequences, -1),
            torch.arange(sequences + 1, device="cuda"),
            torch.full((sequences,), context, device="cuda"),
            sequences,
            dim**-0.5,
            max_query_len=1,
        )
        seconds = device_seconds(call)
        needed = 2 * keys.nbytes / read_bandwidth(keys.device)
        what = f"{sequences} sequences of {context} tokens, {seconds * 1e6:.0f} µs over bytes' time"
        yield Result.most("attention", what, seconds / needed, "×", 1.3)


def transformers(args: argparse.Namespace) -> Iterator[Result]:
    import torch

    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        yield Result("transformers", "is not installed", 0, "")
        return
    count, prompt, output = (2, 8, 8) if args.quick else (64, 128, 256)
    folder = checkpoint(args, "toy" if args.quick else "llama-3.2-1b")
    requests = [(ids(prompt, 1000, i), output) for i in range(count)]
    with engine(args, folder, max_num_seqs=count) as own:
        run(own, requests)
        ours = count * output / run(own, requests)
    model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(args.device).eval()
    )
    model.generation_config.eos_token_id = None
    batch = torch.tensor([p for p, _ in requests], device=args.device)
    rates = []
    for _ in range(2):
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=output,
                           do_sample=False, pad_token_id=0)  # fmt: skip
        if args.device != "cpu":
            torch.cuda.synchronize()
        rates.append(count * output / (time.perf_counter() - began))
    ratio = ours / max(rates)
    what = f"engine {ours:,.0f} over generate {max(rates):,.0f} tokens/s, batch {count}"
    yield Result.least("transformers", what, ratio, "×", 0 if args.quick else 4)


def idle(args: argparse.Namespace) -> Iterator[Result]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    if args.device == "cpu":
        yield Result("idle", "needs a GPU", 0, "")
        return
    with engine(args, checkpoint(args, "llama-3.2-1b"), max_num_seqs=64) as own:
        run(own, [(ids(128, 1000, i), 64) for i in range(64)])
        submit(own, [(ids(128, 1000, 100 + i), 128) for i in range(64)])
        for _ in range(80):  # beyond the prompts
            own.step()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(32):
                own.step()
            torch.cuda.synchronize()
        while own.step():
            pass
    trace = args.out.with_suffix(".trace.json")
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    spans = sorted(
        (e["ts"], e["ts"] + e["dur"]) for e in events
        if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e
    )  # fmt: skip
    busy, end = 0.0, spans[0][0]
    for begin, until in spans:
        busy += max(until - max(begin, end), 0.0)
        end = max(end, until)
    share = 1 - busy / (end - spans[0][0])
    # Between the kernels of a graph lie about 1 µs, which the trace itself widens.
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
    long_gaps = sum(gap for gap in gaps if gap > 10) / (end - spans[0][0])
    yield Result("idle", "no kernel runs", share, "of the time")
    what = f"no kernel runs for over 10 µs, trace {trace.name}"
    yield Result.most("idle", what, long_gaps, "of the time", 0.05)


def server(args: argparse.Namespace) -> Iterator[Result]:
    folder = checkpoint(args, "toy" if args.quick else "llama-3.2-1b")
    if not (folder / "tokenizer.json").exists():
        yield Result("server", "the checkpoint has no tokenizer", 0, "")
        return
    size = ["--concurrency", "2", "--prompt", "8", "--output", "8"] if args.quick else [
        "--concurrency", "64", "--prompt", "128", "--output", "256"]  # fmt: skip
    command = [sys.executable, "bench/streams.py", str(folder), *size, "--rounds", "2",
               "--sides", "engine", "server"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        yield Result("server", done.stderr.strip().splitlines()[-1][:90], 1, "", "0", False)
        return
    line = json.loads(done.stdout.strip().splitlines()[-1])
    ratio = line["ratios"]["server/engine"]
    least = 0 if args.quick else 0.85
    yield Result.least("server", "gRPC streams over the engine in process", ratio, "×", least)


CHECKS: dict[str, Callable[[argparse.Namespace], Iterator[Result]]] = {
    own.__name__: own
    for own in (tokens, attention, throughput, decode, idle, transformers, server, tests)
}

# What they share.


def chosen(args: argparse.Namespace, least: dict[str, float]) -> list[tuple[str, float]]:
    """What is asked for, of the shapes that the command line names."""
    if args.quick:
        return [("toy", 0)]
    return [(name, least[name]) for name in least if name in args.shapes]


def engine(args: argparse.Namespace, folder: Path, **settings: Any) -> Any:
    """A context that holds an engine; the caller steps it."""
    from contextlib import contextmanager

    import torch

    from octavo.config import make_config
    from octavo.engine import Engine

    @contextmanager
    def held() -> Any:
        own = {
            "device": args.device,
            "enable_prefix_caching": False,
            "quality_gate": "off",
            "max_num_batched_tokens": 2048,
            "max_model_len": 256 if folder.name.startswith("toy") else 2560,
            **({"kv_cache_bytes": 2**24} if folder.name.startswith("toy") else {}),
            **settings,
        }
        made = Engine(make_config(model=folder, **own))
        try:
            yield made
        finally:
            made.stop()
            vars(made).clear()  # the caller's name still holds it as the next one is loaded
            gc.collect()
            torch.cuda.empty_cache()

    return held()


def greedy(max_tokens: int, **more: Any) -> Any:
    from octavo.sampling_params import parse

    return parse({"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, **more})


def ids(length: int, vocabulary: int, seed: int) -> list[int]:
    generator = random.Random(f"prompt {seed}")
    return [generator.randrange(10, vocabulary - 10) for _ in range(length)]


def submit(own: Any, requests: list[tuple[list[int], int]]) -> None:
    from octavo.generation import GenerationRequest

    for prompt, output in requests:
        own.submit(GenerationRequest(prompt, greedy(output), lambda token: None))


def run(own: Any, requests: list[tuple[list[int], int]]) -> float:
    """Seconds from the first submission to the last token."""
    began = time.perf_counter()
    submit(own, requests)
    while own.step():
        pass
    return time.perf_counter() - began


def decode_rate(own: Any, count: int, prompt: int, output: int) -> float:
    """Output tokens a second of decode steps, best of three: a whole run less its first token."""
    rates = []
    for seed in range(3):
        requests = [(ids(prompt, 1000, seed * count + i), output) for i in range(count)]
        first = run(own, [(p, 1) for p, _ in requests])
        rates.append(count * (output - 1) / (run(own, requests) - first))
    return max(rates)


def read_bandwidth(device: Any) -> float:
    """Bytes a second of summing 4 GiB on the GPU (256 MiB elsewhere), best of ten."""
    import torch

    is_gpu = device.type == "cuda"
    numbers = torch.zeros(2**30 if is_gpu else 2**26, dtype=torch.float32, device=device)
    if is_gpu:
        return numbers.nbytes / device_seconds(lambda: numbers.sum())
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - began)
    return float(numbers.nbytes / best)


def device_seconds(call: Callable[[], object]) -> float:
    """Median of 20 calls, by CUDA events."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]  # the host prepares meanwhile
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(float(begin.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def checkpoint(args: argparse.Namespace, name: str, dtype: str = "bfloat16") -> Path:
    """A folder with random weights of a shape, and octavo-tiny's tokenizer; written once."""
    import torch
    from safetensors.torch import save_file

    shape, folder = SHAPES[name], args.models / f"{name}-{dtype}"
    if (folder / "config.json").exists():
        return Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    type_ = getattr(torch, dtype)
    generator = torch.Generator(args.device).manual_seed(0)  # billions of numbers
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    parts = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden),
             "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, q),
             "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
             "mlp.down_proj": (hidden, inner)}  # fmt: skip

    def random_matrix(out: int, width: int) -> Any:
        drawn = torch.randn(out, width, generator=generator, device=args.device)
        return drawn.mul_(width**-0.5).to(type_).cpu()

    ends = {
        "model.embed_tokens.weight": random_matrix(shape.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=type_),
    }
    if not shape.tie_word_embeddings:
        ends["lm_head.weight"] = random_matrix(shape.vocab_size, hidden)
    weight_map: dict[str, str] = {}
    for layer in range(-1, shape.num_hidden_layers):
        tensors = ends
        if layer >= 0:
            name = f"model.layers.{layer}"
            tensors = {
                f"{name}.{part}.weight": random_matrix(*size) for part, size in parts.items()
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{name}.{norm}.weight"] = torch.ones(hidden, dtype=type_)
        file = f"model-{layer + 2:05}-of-{shape.num_hidden_layers + 1:05}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    tiny = ROOT / "models" / "octavo-tiny"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if (tiny / file).exists():
            (folder / file).write_bytes((tiny / file).read_bytes())
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 65_536,
              "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
              "torch_dtype": dtype, **asdict(shape)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return Path(folder)


def run_check(args: argparse.Namespace, name: str, environment: dict[str, str]) -> Iterator[Result]:
    """In a process of its own; what it prints beside its results is shown if it fails."""
    own = ["--one", name, "--device", args.device, "--models", str(args.models),
           "--shapes", args.shapes, "--out", str(args.out),
           *(["--quick"] if args.quick else [])]  # fmt: skip
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, __file__, *own], stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment,
        ) as process,
    ):  # fmt: skip
        timer = threading.Timer(args.timeout, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("RESULT "):
                yield Result(**json.loads(line[7:]))
        status = process.wait()
        timer.cancel()
        if status:
            errors.seek(0)
            text = errors.read()
            sys.stderr.write(text[-3000:])
            last = (text.strip().splitlines() or ["ended without a word, or after --timeout"])[-1]
            yield Result(name, last[:90], status, "exit status", "0", False)


def machine(device: str) -> dict[str, str]:
    import torch

    found = {"torch": torch.__version__, "python": sys.version.split()[0], "device": device}
    if torch.cuda.is_available():
        import triton

        found |= {"gpu": torch.cuda.get_device_name(0), "cuda": str(torch.version.cuda),
                  "triton": triton.__version__}  # fmt: skip
    return found


def show(results: list[Result], versions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=", ".join(f"{key} {value}" for key, value in versions.items()))
    for column in ("check", "what", "value", "target", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    marks = {True: "[green]holds[/]", False: "[red]fails[/]", None: ""}
    for own in results:
        digits = f"{own.value:,.0f}" if abs(own.value) >= 100 else f"{own.value:.3g}"
        table.add_row(own.check, own.what, f"{digits} {own.unit}", own.target, marks[own.holds])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", type=Path, default=Path("/tmp/octavo-gpu-models"))
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu.jsonl")
    parser.add_argument("--only", default=",".join(CHECKS), help="checks, with commas")
    parser.add_argument(
        "--shapes", default="llama-3.2-1b,llama-3.1-8b", help="of decode and throughput"
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each check")
    parser.add_argument("--quick", action="store_true", help="a toy model, seconds a check")
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        for result in CHECKS[args.one](args):
            print("RESULT", json.dumps(asdict(result)), flush=True)
        return 0
    names = args.only.split(",")
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"--only {unknown[0]}: the checks are {', '.join(CHECKS)}")
    versions = machine(args.device)
    results: list[Result] = []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "backend"), str(ROOT / "client"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with args.out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(versions) + "\n")
        for number, name in enumerate(names, 1):
            began = time.monotonic()
            print(f"[{number}/{len(names)}] {name} …", file=sys.stderr, flush=True)
            for result in run_check(args, name, environment):
                results.append(result)
                file.write(json.dumps(asdict(result)) + "\n")
                file.flush()  # nothing is lost where a session ends
                print(f"    {result.what}: {result.value:.4g} {result.unit}", file=sys.stderr)
            print(f"    {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(results, versions)
    return int(any(result.holds is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
