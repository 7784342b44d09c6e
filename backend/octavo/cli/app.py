"""The `octavo` command: options and exit codes. What each command does lies in its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli import profile_app
from octavo.cli.bench_app import bench_app
from octavo.cli.gate_usage import GateCommand
from octavo.cli.plan_app import plan_app
from octavo.cli.playbook_app import add_playbook
from octavo.cli.triton_flags import CONTAINER_VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Octavo: an LLM engine inside NVIDIA Triton Inference Server, and its tools.",
)

app.add_typer(bench_app, name="bench")
app.add_typer(plan_app, name="plan")
app.command(help=profile_app.HELP, epilog=profile_app.EPILOG)(profile_app.profile)
add_playbook(app)

_ENGINE, _SERVER, _NETWORK, _CANDIDATE = "Engine", "Server", "Network", "Candidate"
_QUANTIZE_HELP = "\n\n".join(
    (
        "Write a checkpoint with weights of 4 or 8 bits, as compressed-tensors packs them: octavo "
        "serve, vLLM and transformers load it.",
        "rtn rounds each weight to the nearest number and reads no text. gptq and awq read "
        '--calibration, text of the kind that the model will see (.txt, or .jsonl with a "text" in '
        "each line), and take about as long as running it through the model twice. gptq takes the "
        "rounding of each column out of those behind it, as far as their inputs go together. awq "
        "makes the weights of large inputs larger before they are rounded.",
        "One layer after the other is read, quantized and written, so little memory is needed, and "
        "nothing finished is lost: the same command goes on where it was interrupted.",
        "The lm_head and the embedding stay as they are. Quality is not measured here.",
        "Try: octavo quantize my-llama --format int4 --method gptq --calibration chats.jsonl "
        "--out my-llama-int4",
    )
)

_GATE_HELP = "\n\n".join(
    (
        "Is CANDIDATE as good as BASELINE on your text? Both read the same tokens with the "
        "engine's own kernels and KV memory, and every token's loss is compared.",
        "CANDIDATE is another checkpoint folder, or BASELINE's with --weights or --kv, rounded as "
        "the engine would round it when it loads.",
        "PASS: with 95 % confidence the perplexity is worse by no more than the margin, and a "
        "screen for damage (KL divergence, top-1 agreement) is clean. FAIL: it is worse by more, "
        "or damaged. INCONCLUSIVE: too little text to tell, and about how many documents more "
        "would do. NO SIGNAL: the baseline cannot read this text itself.",
        'The text should be of the kind that the model will see: .jsonl with a "text" in each '
        "line, or .txt with form feeds (else blank lines) between documents. What counts is the "
        "number of documents, at least 20 that have nothing to do with each other. KV formats "
        "need documents as long as the contexts that they are for.",
        "The evidence goes into quality.json beside the candidate's weights, with hashes of all "
        "that was measured, and an HTML report beside it.",
        "Try: octavo gate models/octavo-tiny models/octavo-tiny --kv int8 "
        "--text models/octavo-tiny/heldout.jsonl --out /tmp",
    )
)

_TOP_HELP = "\n\n".join(
    (
        "Watch a running server: tokens per second, time to first token and per output token, who "
        "runs and waits, KV memory and its pressure, how the time divides into busy, idle and "
        "overhead, dollars per million good tokens, who caused the cost, and in one line what "
        "limits it now.",
        "All numbers are of the last interval. Dollars need price_usd_per_hour on the server.",
        "Try: octavo top, or: octavo top --url http://gpu-3:8002 --once --interval 10",
    )
)

Port = Annotated[
    int,
    typer.Option(
        help="HTTP port; gRPC and metrics take the two after it.",
        rich_help_panel=_NETWORK,
    ),
]
OnePort = Annotated[int | None, typer.Option(help="This port alone.", rich_help_panel=_NETWORK)]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_NETWORK)]


@app.callback()
def _main() -> None:
    pass


@app.command(
    epilog="Exit codes: 0 drained and stopped, 1 not started, 2 wrong usage, 3 the engine died, "
    "4 stopped before all running requests had finished."
)
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder, or id on the Hugging Face hub.",
            show_default="models/octavo-tiny",
        ),
    ] = None,
    port: Port = 8000,
    http_port: OnePort = None,
    grpc_port: OnePort = None,
    metrics_port: OnePort = None,
    host: Host = "127.0.0.1",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"] | None,
        typer.Option(help="Type of weights and activations.", rich_help_panel=_ENGINE),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of the engine.", rich_help_panel=_ENGINE)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Sequences decoded at once.", rich_help_panel=_ENGINE)
    ] = None,
    kv_cache_bytes: Annotated[
        str | None, typer.Option(help="KV cache, such as 2GiB.", rich_help_panel=_ENGINE)
    ] = None,
    quality_gate: Annotated[
        Literal["require", "warn", "off"] | None,
        typer.Option(
            help="Quantized weights, activations or KV without evidence of octavo gate: refused, "
            "served with a warning, or served unseen.",
            show_default="require",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    quality_margin: Annotated[
        float | None,
        typer.Option(
            help="Perplexity that they may have lost, as a ratio, up to 0.02.",
            show_default="0.01",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any setting of engine.toml; repeatable.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    contract: Annotated[
        Literal["batched", "vllm"],
        typer.Option(
            help="Form of the tensors: batched [1,1], or vllm_backend's [1].",
            rich_help_panel=_SERVER,
        ),
    ] = "batched",
    repository: Annotated[
        Path | None,
        typer.Option(
            help="Model repository.", show_default="model_repository", rich_help_panel=_SERVER
        ),
    ] = None,
    server_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the server folder is built.",
            show_default="~/.cache/octavo",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    log_level: Annotated[
        Literal["error", "warning", "info", "verbose"],
        typer.Option(help="How much the server logs.", rich_help_panel=_SERVER),
    ] = "info",
    log_file: Annotated[
        Path | None,
        typer.Option(
            help="The server's log (overwritten).",
            show_default="a new one in ~/.cache/octavo/logs",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    ready_timeout: Annotated[
        float, typer.Option(help="Seconds to the first token.", min=1, rich_help_panel=_SERVER)
    ] = 180,
    drain_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds for running requests to finish.", min=0, rich_help_panel=_SERVER
        ),
    ] = 30,
) -> None:
    """Serve a model: start the embedded Triton server, wait for a token, stay until Ctrl-C."""
    from octavo.cli import serve as command
    from octavo.cli.arguments import ServeArguments

    raise typer.Exit(
        command.run(
            ServeArguments(
                model=model,
                port=port,
                http_port=http_port,
                grpc_port=grpc_port,
                metrics_port=metrics_port,
                host=host,
                engine={
                    "dtype": dtype,
                    "num_threads": threads,
                    "max_num_seqs": max_num_seqs,
                    "kv_cache_bytes": kv_cache_bytes,
                    "quality_gate": quality_gate,
                    "quality_margin": quality_margin,
                },
                assignments=tuple(assignments or ()),
                contract=contract,
                repository=repository,
                server_dir=server_dir,
                log_level=log_level,
                log_file=log_file,
                ready_timeout_s=ready_timeout,
                drain_timeout_s=drain_timeout,
            )
        )
    )


@app.command(epilog="Exit codes: 0 nothing fatal, 1 something fatal.")
def doctor(
    port: Port = 8000,
    host: Host = "127.0.0.1",
    fix: Annotated[bool, typer.Option("--fix", help="Remove stale regions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Look at this machine: what is missing for the server, and how to mend it."""
    from octavo.cli import doctor as command

    raise typer.Exit(command.run(port=port, host=host, fix=fix, json_output=as_json))


@app.command(epilog="Exit codes: 0 it makes tokens, 1 it does not.")
def health(
    port: Port = 8000,
    metrics_port: OnePort = None,
    host: Host = "127.0.0.1",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a token.", min=0.1)] = 10,
) -> None:
    """Ask a running server for a token: a health check that sees a dead engine."""
    from octavo.cli import health as command
    from octavo.cli.arguments import ServeArguments

    arguments = ServeArguments(port=port, metrics_port=metrics_port, host=host)
    raise typer.Exit(command.run(arguments, timeout))


@app.command(
    help=_TOP_HELP,
    epilog="Exit codes: 0 done or Ctrl-C, 1 no Octavo server there, 2 wrong usage.",
)
def top(
    url: Annotated[
        str, typer.Option(help="The server's metrics, http://host:port.")
    ] = "http://localhost:8002",
    interval: Annotated[
        float, typer.Option(help="Seconds between frames; a server counts once a second.", min=1)
    ] = 2,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame after an interval and end.")
    ] = False,
) -> None:
    from octavo.cli import top as command

    raise typer.Exit(command.run(url, interval, once=once))


@app.command(
    help=_QUANTIZE_HELP,
    epilog="Exit codes: 0 written, 1 not, 2 wrong usage, 130 Ctrl-C: finished layers are kept.",
)
def quantize(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or id on the Hugging Face hub.")],
    out: Annotated[Path, typer.Option(help="New folder; nothing is overwritten.")],
    weights: Annotated[
        Literal["int4", "int8"], typer.Option("--format", help="Bits of a weight.")
    ] = "int4",
    group_size: Annotated[
        Literal["32", "64", "128"] | None,
        typer.Option(
            help="Weights of a row that share a scale.",
            show_default="64 for int4, whole rows for int8",
        ),
    ] = None,
    method: Annotated[
        Literal["rtn", "gptq", "awq"], typer.Option(help="How weights are rounded.")
    ] = "rtn",
    calibration: Annotated[
        Path | None, typer.Option(help="Text that gptq and awq read, .txt or .jsonl.")
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option(help="Tokens that are read of it, at most.", min=1)
    ] = 32_768,
    window: Annotated[int, typer.Option(help="Tokens that are read in one piece.", min=1)] = 512,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
) -> None:
    from octavo.cli import quantize as command
    from octavo.quantization.job import QuantizeOptions

    if (calibration is None) == (method != "rtn"):
        verb = "needs" if calibration is None else "reads no text; leave out"
        raise typer.BadParameter(f"--method {method} {verb} --calibration FILE")
    default = 64 if weights == "int4" else None
    options = QuantizeOptions(
        model=model,
        out=str(out),
        bits=4 if weights == "int4" else 8,
        group_size=default if group_size is None else int(group_size),
        method=method,
        calibration=None if calibration is None else str(calibration),
        calibration_tokens=calibration_tokens,
        window=window,
        threads=threads,
    )
    raise typer.Exit(command.run(options))


@app.command(
    cls=GateCommand,
    help=_GATE_HELP,
    epilog="Exit codes: 0 pass, 1 fail, 2 inconclusive, 3 no signal, 4 not measured (wrong usage, "
    "or something that cannot be read), 130 Ctrl-C.",
)
def gate(
    baseline: Annotated[
        str,
        typer.Argument(
            metavar="BASELINE", help="Checkpoint folder of 16 or 32 bits, or id on the hub."
        ),
    ],
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="Checkpoint folder, or id on the hub.")
    ],
    text: Annotated[Path, typer.Option(help="What both read, .jsonl or .txt.")],
    margin: Annotated[
        float, typer.Option(help="Perplexity that may be lost, as a ratio, up to 0.02.")
    ] = 0.01,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens that are read at once; longer documents are cut.",
            show_default="the model's, as far as the longest document goes",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of quality.json and the report.", show_default="the candidate's"),
    ] = None,
    weights: Annotated[
        Literal["auto", "int8", "int4", "w8a8", "w4a8"],
        typer.Option(help="Of the candidate: weight_format.", rich_help_panel=_CANDIDATE),
    ] = "auto",
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Of int4 and w4a8: weight_group_size.",
            show_default="128",
            rich_help_panel=_CANDIDATE,
        ),
    ] = None,
    lm_head: Annotated[
        Literal["auto", "bfloat16"],
        typer.Option(help="lm_head_format.", rich_help_panel=_CANDIDATE),
    ] = "auto",
    kv: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"],
        typer.Option(help="kv_cache_dtype.", rich_help_panel=_CANDIDATE),
    ] = "auto",
    kv_skip_layers: Annotated[
        str,
        typer.Option(
            metavar="0,3",
            help="Layers whose KV memory is not quantized.",
            rich_help_panel=_CANDIDATE,
        ),
    ] = "",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        typer.Option(help="Of the computation, both sides.", rich_help_panel=_ENGINE),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:0.", rich_help_panel=_ENGINE)
    ] = "auto",
    kernels: Annotated[
        Literal["auto", "amx", "avx512", "avx2", "portable", "reference"],
        typer.Option(help="The CPU's kernels.", rich_help_panel=_ENGINE),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.", min=1, rich_help_panel=_ENGINE)
    ] = None,
) -> None:
    from octavo.cli import gate as command
    from octavo.quality.options import GateOptions

    layers = [part.strip() for part in kv_skip_layers.split(",") if part.strip()]
    if not all(part.isdecimal() for part in layers):
        raise typer.BadParameter(f"--kv-skip-layers = {kv_skip_layers}: layers such as 0,3")
    options = GateOptions(
        baseline=baseline,
        candidate=candidate,
        text=str(text),
        margin=margin,
        context=context,
        out=None if out is None else str(out),
        dtype=dtype,
        weight_format=weights,
        weight_group_size=group_size,
        lm_head_format=lm_head,
        kv_cache_dtype=kv,
        kv_cache_skip_layers=tuple(map(int, layers)),
        device=device,
        kernels=kernels,
        num_threads=threads,
    )
    raise typer.Exit(command.run(options))


@app.command(
    epilog="Engine settings come from OCTAVO_ENGINE_<FIELD>. Exit code 1: it could not start."
)
def exec_server(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder, or id on the Hugging Face hub.",
            envvar="OCTAVO_MODEL",
            show_default="models/octavo-tiny",
        ),
    ] = None,
    port: Port = 8000,
    host: Host = "0.0.0.0",
    contract: Annotated[
        Literal["batched", "vllm"],
        typer.Option(help="Form of the tensors: batched [1,1], or vllm_backend's [1]."),
    ] = "batched",
    repository: Annotated[
        Path | None, typer.Option(help="Model repository.", show_default="model_repository")
    ] = None,
    log_level: Annotated[
        Literal["error", "warning", "info", "verbose"],
        typer.Option(help="How much the server logs."),
    ] = "info",
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds for running requests to finish.", min=0)
    ] = 30,
    triton_version: Annotated[
        str,
        typer.Option(help="Version of the installed Triton.", envvar="TRITON_SERVER_VERSION"),
    ] = CONTAINER_VERSION,
    show: Annotated[bool, typer.Option("--print", help="Only print the command line.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only hold its flags against tritonserver --help.")
    ] = False,
) -> None:
    """In NVIDIA's container: become tritonserver, with Octavo's settings."""
    from octavo.cli import exec_server as command
    from octavo.cli.arguments import ServeArguments

    arguments = ServeArguments(
        model=model,
        port=port,
        host=host,
        contract=contract,
        repository=repository,
        log_level=log_level,
        drain_timeout_s=drain_timeout,
    )
    raise typer.Exit(command.run(arguments, triton_version, show=show, check=check))


def main() -> None:
    app(prog_name="octavo")
