#!/usr/bin/env python3
"""Output tokens per second of one batch: transformers, our engine in process, our server.

    python bench/streams.py MODEL [--concurrency 16] [--prompt 128] [--output 128] [--rounds 3]

Each round gives every side the same requests, all sent at once: greedy, end of sequence
ignored, random prompts that differ by round. The sides take turns within one run, so that a
shared or throttled machine treats them alike; what counts is the ratio. With --mixed, prompt
and output lengths are spread evenly from a quarter to seven quarters of the given ones
(transformers then pads prompts and runs to the longest output, as its batched generate must).

output_tps = all output tokens / (last token - submission), prefill included.
The server's side is that many gRPC streams of tritonclient, in a process of its own; tokens that
gather while a sender rests (sender_duty_cycle in engine.toml, here --duty-cycle) come as one
response. responses_per_token tells how many come alone; cpu_us_per_response the processes' CPU
time, the model's beyond what the engine in process took for as many tokens.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

Requests = list[tuple[list[int], int]]  # prompt token ids, output tokens


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float  # for all requests
    responses: int = 0  # that streams received


Side = Callable[[Requests], Run]

REPOSITORY = Path(__file__).parents[1] / "model_repository"


def make_requests(args: argparse.Namespace, vocab_size: int, seed: int) -> Requests:
    generator = random.Random(f"round {seed}")  # a number's sign would not count
    requests: Requests = []
    for index in range(args.concurrency):
        share = 0.25 + 1.5 * index / max(args.concurrency - 1, 1) if args.mixed else 1.0
        length = max(1, round(args.prompt * share))
        prompt = [generator.randrange(300, vocab_size - 300) for _ in range(length)]
        requests.append((prompt, max(2, round(args.output * share))))
    generator.shuffle(requests)
    return requests


def transformers_side(args: argparse.Namespace) -> Side:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()  # type: ignore[no-untyped-call]
    model.generation_config.eos_token_id = None

    def run(requests: Requests) -> Run:
        width = max(len(prompt) for prompt, _ in requests)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in requests])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in requests])
        longest = max(output for _, output in requests)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=0
            )
        return Run(time.perf_counter() - began)

    return run


def engine_side(args: argparse.Namespace) -> Side:
    from octavo.config import make_config
    from octavo.engine import Engine
    from octavo.sampling_params import parse

    # The server, which is there already, has half of a GPU: see start_server.
    settings = {**engine_settings(args), "gpu_memory_utilization": 0.9}
    engine = Engine(make_config(model=args.model, **settings))
    engine.runner.bind_to_thread()

    def run(requests: Requests) -> Run:
        params = [
            parse({"temperature": 0, "max_tokens": output, "ignore_eos": True})
            for _, output in requests
        ]
        began = time.perf_counter()
        results = engine.generate([prompt for prompt, _ in requests], params)
        elapsed = time.perf_counter() - began
        assert [len(r.token_ids) for r in results] == [output for _, output in requests]
        return Run(elapsed)

    return run


def server_side(args: argparse.Namespace) -> Side:
    """Streams of a running server, whose address is args.url: one tritonclient for each."""
    import tritonclient.grpc as grpcclient

    clients = [grpcclient.InferenceServerClient(args.url) for _ in range(args.concurrency)]
    names = ("text_output", "num_output_tokens")

    def run(requests: Requests) -> Run:
        streams = [_Stream() for _ in requests]
        began = time.perf_counter()
        for client, stream, (prompt, output) in zip(clients, streams, requests, strict=True):
            client.start_stream(stream.take)
            client.async_stream_infer(
                "llm",
                _inputs(prompt, output, batched=args.contract == "batched"),
                outputs=[grpcclient.InferRequestedOutput(name) for name in names],
            )
        for stream in streams:
            stream.ended.wait()
        elapsed = time.perf_counter() - began
        for client in clients:
            client.stop_stream()
        for stream, (_, output) in zip(streams, requests, strict=True):
            assert stream.num_tokens() == output, (stream.errors, stream.num_tokens(), output)
        return Run(elapsed, sum(len(stream.results) for stream in streams))

    return run


class _Stream:
    """What one stream has received; it is read only after the clock has stopped."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[Any] = []
        self.ended = threading.Event()

    def take(self, result: Any, error: Any) -> None:
        if error is not None:
            self.errors.append(error)
            self.ended.set()
            return
        self.results.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            self.ended.set()

    def num_tokens(self) -> int:
        return sum(int(result.as_numpy("num_output_tokens").sum()) for result in self.results)


def _inputs(prompt: list[int], output: int, *, batched: bool) -> list[Any]:
    import numpy as np
    import tritonclient.grpc as grpcclient

    sampling = {"temperature": 0, "max_tokens": output, "ignore_eos": True}
    values = {
        "input_ids": (np.array(prompt, dtype=np.int32), "INT32"),
        "stream": (np.array([True]), "BOOL"),
        "sampling_parameters": (np.array([json.dumps(sampling).encode()], dtype=object), "BYTES"),
        "return_num_output_tokens": (np.array([True]), "BOOL"),
    }
    inputs = []
    for name, (value, datatype) in values.items():
        shaped = value[None] if batched else value
        tensor = grpcclient.InferInput(name, list(shaped.shape), datatype)
        tensor.set_data_from_numpy(shaped)
        inputs.append(tensor)
    return inputs


SIDES: dict[str, Callable[[argparse.Namespace], Side]] = {
    "transformers": transformers_side,
    "engine": engine_side,
    "server": server_side,
}


def work(name: str, args: argparse.Namespace, pipe: Connection) -> None:
    """A side's process: loads once, then answers each batch of requests with its run."""
    side = SIDES[name](args)
    pipe.send("ready")
    while (requests := pipe.recv()) is not None:
        pipe.send(side(requests))


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The same for the engine in process and in the server."""
    return {
        "dtype": args.dtype,
        "num_threads": args.threads,
        "max_num_seqs": max(args.concurrency, 32),
        "sender_duty_cycle": args.duty_cycle,
        "quality_gate": "off",
    }


def quality(folder: Path) -> str | None:
    """Of octavo's sides, which look at no evidence."""
    from octavo.models.model_config import read_model_config

    return None if read_model_config(folder).stored_format is None else "ungated"


def start_server(args: argparse.Namespace) -> Any:
    from octavo.cli.embedded_server import EmbeddedServer
    from octavo.cli.ports import Ports
    from octavo.cli.server_settings import ServerSettings

    settings = ServerSettings(
        repository=REPOSITORY,
        model=args.model,
        ports=Ports.free(),
        contract=args.contract,
        engine_overrides={
            **{name: str(value) for name, value in engine_settings(args).items()},
            "gpu_memory_utilization": "0.45",
        },
    )
    server = EmbeddedServer(settings)
    server.start()
    args.url = server.settings.grpc_url
    return server


@dataclass(slots=True)
class Measured:
    """Of one side, a number for each round."""

    output_tps: list[float] = field(default_factory=list)
    responses_per_token: list[float] = field(default_factory=list)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)  # by process


def measure(args: argparse.Namespace) -> dict[str, Measured]:
    vocab_size = json.loads((args.model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    server = start_server(args) if "server" in args.sides else None
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes: dict[str, dict[str, psutil.Process]] = {}  # what works for a side, by name
    try:
        for name in args.sides:
            pipes[name], theirs = context.Pipe()
            worker = context.Process(target=work, args=(name, args, theirs), daemon=True)
            worker.start()
            pipes[name].recv()
            processes[name] = {"client" if name == "server" else name: psutil.Process(worker.pid)}
        if server is not None:
            processes["server"] |= server_processes(psutil.Process(server.pid))
        found = {name: Measured() for name in args.sides}
        for number in range(-1, args.rounds):  # round −1 warms up
            requests = make_requests(args, vocab_size, number)
            tokens = sum(output for _, output in requests)
            for name, pipe in pipes.items():
                before = {own: cpu_s(process) for own, process in processes[name].items()}
                pipe.send(requests)
                run: Run = pipe.recv()
                rate, own = tokens / run.seconds, found[name]
                print(f"round {number}: {name} {rate:.1f} tok/s", file=sys.stderr, flush=True)
                if number < 0:
                    continue
                own.output_tps.append(rate)
                if run.responses:
                    own.responses_per_token.append(run.responses / tokens)
                for part, process in processes[name].items():
                    own.cpu_s.setdefault(part, []).append(cpu_s(process) - before[part])
        return found
    finally:
        for pipe in pipes.values():
            pipe.send(None)
        if server is not None:
            server.stop()


def server_processes(server: psutil.Process) -> dict[str, psutil.Process]:
    """The server and the process of the model that has the engine: the one that has computed."""
    stubs = [each for each in server.children(recursive=True) if "stub" in each.name()]
    return {"tritonserver": server, "model": max(stubs, key=cpu_s)}


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_us_per_response(found: dict[str, Measured], tokens: int) -> dict[str, float]:
    """What serving adds to the engine's own time, by process, medians."""
    own = found["server"]
    responses = statistics.median(own.responses_per_token) * tokens
    spent = {name: statistics.median(values) for name, values in own.cpu_s.items()}
    spent["model"] -= statistics.median(found["engine"].cpu_s["engine"])
    return {name: round(1e6 * seconds / responses, 1) for name, seconds in spent.items()}


def default_duty_cycle() -> float:
    from octavo.config import EngineConfig

    defaults: dict[str, Any] = {each.name: each.default for each in fields(EngineConfig)}
    return float(defaults["sender_duty_cycle"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--output", type=int, default=128, help="output tokens")
    parser.add_argument("--mixed", action="store_true", help="spread the lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--duty-cycle", type=float, default=default_duty_cycle())
    parser.add_argument("--contract", default="batched", choices=("batched", "vllm"))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    args = parser.parse_args()
    found = measure(args)
    medians = {name: statistics.median(own.output_tps) for name, own in found.items()}
    ratios = {
        f"server/{name}": medians["server"] / medians[name]
        for name in ("transformers", "engine")
        if "server" in medians and name in medians
    }
    facts = {
        key: getattr(args, key)
        for key in ("concurrency", "prompt", "output", "mixed", "threads", "dtype", "duty_cycle")
    }
    result = {
        "model": args.model.name,
        "quality": quality(args.model),
        **facts,
        "output_tps": medians,
        "rounds": {name: own.output_tps for name, own in found.items()},
        "ratios": ratios,
    }
    if "server" in found:
        share = statistics.median(found["server"].responses_per_token)
        result["responses_per_token"] = round(share, 3)
    if "server" in found and "engine" in found:
        tokens = sum(output for _, output in make_requests(args, 10**4, 0))
        result["cpu_us_per_response"] = cpu_us_per_response(found, tokens)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
