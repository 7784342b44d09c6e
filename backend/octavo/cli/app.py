"""The `octavo` command: options and exit codes. What each command does lies in its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli.bench_app import bench_app
from octavo.cli.triton_flags import CONTAINER_VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Octavo: an LLM engine inside NVIDIA Triton Inference Server, and its tools.",
)

app.add_typer(bench_app, name="bench")

_ENGINE, _SERVER, _NETWORK = "Engine", "Server", "Network"
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
