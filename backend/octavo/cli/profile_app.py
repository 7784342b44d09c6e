"""`octavo profile`: its options and exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_LOAD, _ENGINE, _OUTPUT = "Load", "Engine", "Output"
NSYS = (
    "nsys profile --trace=cuda,nvtx,osrt --trace-fork-before-exec=true --cuda-graph-trace=node "
    "--output=octavo octavo profile MODEL"
)
HELP = "\n\n".join(
    (
        "Where a step's time and bytes go, beside what this machine allows.",
        "First the peaks are measured: read bandwidth, and products in each format. Then MODEL "
        "runs in a process of this command, without a server: prefills of --batch prompts of "
        "--prompt tokens, and steps that decode --batch sequences around --context tokens. Of each "
        "there is a table: an operation's time, bytes, FLOPs, rates, share of the peak and of its "
        "roof; then MBU and MFU, and the gap: what the rest of the step's time went into.",
        "Every second step is recorded, the others run as in service; what recording takes is a "
        "line of its own.",
        "Try: octavo profile models/octavo-tiny --batch 4 --context 128 --html profile.html",
        f"On a machine of NVIDIA's, for Nsight Systems: {NSYS}",
        "In a server: octavo serve --set profile_steps=100-150 records those steps from live "
        "traffic, once, into a file for ui.perfetto.dev; its path is in the log.",
    )
)
EPILOG = (
    "Exit codes: 0 measured, 1 it could not, 2 wrong usage or a value that cannot be, 130 Ctrl-C."
)


def profile(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder, or id on the Hugging Face hub.",
            show_default="models/octavo-tiny",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences of a step.", rich_help_panel=_LOAD)] = 8,
    context: Annotated[
        int,
        typer.Option(
            help="Tokens before the one that a decode step computes: mean of the steps.",
            rich_help_panel=_LOAD,
        ),
    ] = 256,
    prompt: Annotated[
        int, typer.Option(help="Tokens of each prompt that is prefilled.", rich_help_panel=_LOAD)
    ] = 256,
    steps: Annotated[
        int, typer.Option(help="Decode steps, every second recorded.", rich_help_panel=_LOAD)
    ] = 64,
    prefills: Annotated[
        int, typer.Option(help="Prefills that are recorded.", rich_help_panel=_LOAD)
    ] = 9,
    weight_format: Annotated[
        str | None, typer.Option(help="How weights are stored.", rich_help_panel=_ENGINE)
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="How keys and values are stored.", rich_help_panel=_ENGINE)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the computation.", rich_help_panel=_ENGINE)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:0.", rich_help_panel=_ENGINE)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads.", show_default="one per core", rich_help_panel=_ENGINE),
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
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write all numbers; - is stdout, in place of the tables.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw the roofline; .svg and .pdf too. Needs matplotlib.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE.html",
            help="Write one page with all of it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    trace_file: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE.json",
            help="Record a prefill and eight decode steps: torch's profiler and the engine's own "
            "ranges, for ui.perfetto.dev.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    from octavo.benchmarks.profile import Options
    from octavo.cli import profile as command
    from octavo.cli.profile import Outputs

    named = {
        "weight_format": weight_format,
        "kv_cache_dtype": kv_cache_dtype,
        "dtype": dtype,
        "device": device,
        "num_threads": threads,
    }
    options = Options(
        model=model,
        batch=batch,
        context=context,
        prompt=prompt,
        steps=steps,
        prefills=prefills,
        trace=None if trace_file is None else str(trace_file.absolute()),
    )
    outputs = Outputs(json_file, plot_file, html_file, trace_file)
    raise typer.Exit(command.run(options, named, assignments or [], outputs))
