"""The `octavo` command: options and exit codes. What each command does lies in its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli import profile_app
from octavo.cli.bench_app import bench_app
from octavo.cli.gate_app import add_gate
from octavo.cli.plan_app import plan_app
from octavo.cli.playbook_app import add_playbook
from octavo.cli.quantize_app import add_quantize
from octavo.cli.triton_flags import CONTAINER_VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Octavo: an LLM engine inside NVIDIA Triton Inference Server, and its tools.",
)

_ENGINE, _SERVER, _NETWORK = "Engine", "Server", "Network"
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
        float,
        typer.Option(
            help="Seconds between frames; a server counts once a second.", min=1, max=86_400
        ),
    ] = 2,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame after an interval and end.")
    ] = False,
) -> None:
    from octavo.cli import top as command

    raise typer.Exit(command.run(url, interval, once=once))


app.command(help=profile_app.HELP, epilog=profile_app.EPILOG)(profile_app.profile)
add_quantize(app)
add_gate(app)
add_playbook(app)
app.add_typer(plan_app, name="plan")
app.add_typer(bench_app, name="bench")


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
