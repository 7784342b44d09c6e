"""`octavo bench`: options and exit codes of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli import bench_speed

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure what a mechanism of the engine gives, on this machine."
)

_LOAD, _ENGINE, _OUTPUT = "Load", "Engine", "Output"

_IDENTICAL_HELP = "\n\n".join(
    (
        "One prompt alone against N identical ones at once, with paging and sharing off and on.",
        "Without paging each sequence reserves one contiguous block of KV memory, as long as the "
        "whole context: few run at once, the others queue. With paging it takes small blocks as it "
        "grows. With sharing (the prefix cache) equal beginnings are computed and kept once; a "
        "cold cache has not seen the prompt, a warm one has.",
        "The engine runs in a process of this command, without a server: times are from a "
        "request's submission to its first and to its last token. The configurations take turns "
        "in each round, and medians over the rounds are shown: on a shared machine compare within "
        "one run only.",
        "Try: octavo bench identical --plot identical.png",
        "Paging gives most where contexts are long and requests short; sharing, where prompts are "
        "long and answers short. --kv-memory decides how many sequences run at once.",
    )
)


bench_speed.register(bench_app)


@bench_app.callback()
def _main() -> None:
    pass


@bench_app.command(
    help=_IDENTICAL_HELP,
    epilog="Exit codes: 0 measured, 1 it could not, 2 wrong usage, 130 Ctrl-C: what was measured "
    "until then is printed and written.",
)
def identical(
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint folder, or id on the Hugging Face hub.",
            show_default="models/octavo-tiny",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    requests: Annotated[
        int,
        typer.Option(help="Identical requests at once.", min=2, max=4096, rich_help_panel=_LOAD),
    ] = 8,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="Random tokens of the prompt.",
            min=1,
            show_default="a quarter of the context",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    output_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of each answer; its end is ignored.", min=2, rich_help_panel=_LOAD
        ),
    ] = 64,
    rounds: Annotated[
        int, typer.Option(help="Times that all is measured.", min=1, rich_help_panel=_LOAD)
    ] = 3,
    context: Annotated[
        int | None,
        typer.Option(
            help="Longest context in tokens: what a sequence reserves without paging.",
            min=3,
            show_default="the model's",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            help="KV memory, such as 64MiB, the same in every configuration.",
            show_default="the fewest contexts in which all requests run at once when paged",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    block_size: Annotated[
        int,
        typer.Option(
            help="Tokens of a block with paging.", min=1, max=1024, rich_help_panel=_ENGINE
        ),
    ] = 16,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        typer.Option(help="Type of weights and activations.", rich_help_panel=_ENGINE),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads of the engine.",
            min=1,
            show_default="one per core",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write every round's raw numbers, medians, settings and machine.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw TTFT and end to end; .svg and .pdf too. Needs matplotlib.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    from octavo.benchmarks.identical import Options
    from octavo.cli import bench_identical as command

    options = Options(
        model=model,
        dtype=dtype,
        num_threads=threads,
        num_requests=requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens=context,
        block_size=block_size,
        rounds=rounds,
    )
    raise typer.Exit(
        command.run(options, kv_memory=kv_memory, json_file=json_file, plot_file=plot_file)
    )
