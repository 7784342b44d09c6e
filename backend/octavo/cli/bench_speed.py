"""`octavo bench engine`, `kernels` and `compare`: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.benchmarks.compare import RATIO_RULE
from octavo.benchmarks.kernel_speed import OPS
from octavo.benchmarks.weight_bits import RULE
from octavo.benchmarks.workloads import DEFAULT_NAMES

_LOAD, _ENGINE, _OUTPUT = "Load", "Engine", "Output"
_EPILOG = (
    "Exit codes: 0 measured, 1 it could not, 2 wrong usage, 130 Ctrl-C: what was measured until "
    "then is printed and written."
)
_ENGINE_HELP = "\n\n".join(
    (
        "Speed of the engine under fixed loads, beside what the machine's memory allows.",
        "All requests of a workload are submitted at once, greedy, the end of sequence ignored; a "
        "warm-up, then medians over the runs. Names: p128-g64-c8 is 8 requests of 128 prompt and "
        "64 output tokens; shared1024+32-g32-c8 has 1024 prompt tokens in common; primed… the "
        "same after one request with that beginning.",
        "The engine runs in a process of this command, without a server.",
        "Try: octavo bench engine --model my-llama --workloads p128-g128-c1,p128-g128-c8",
    )
)
_KERNELS_HELP = "\n\n".join(
    (
        "Speed of each kernel in each shape and format, and its share of the machine's peak.",
        "Weights and KV memory are rotated over 256 MiB, so that they come from memory as in a "
        "step of the engine. The peak is measured in the same run: read bandwidth where memory "
        "is the limit, products in registers where computing is.",
        "Try: octavo bench kernels --ops linear --model my-llama",
    )
)
_COMPARE_HELP = "\n\n".join(
    (
        "Results of octavo bench engine beside those of other engines.",
        "FILEs hold JSON lines with peer, model, workload and the measures decode_tps, prefill_tps "
        "and ttft_s; lines with an error are left out. Models that differ in nothing but what "
        "their names say of the weights are compared with each other.",
        RULE,
        RATIO_RULE,
        "Try: octavo bench compare ours.jsonl theirs.jsonl --plot compare.png",
    )
)

Model = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint folder, or id on the Hugging Face hub.",
        show_default="models/octavo-tiny",
        rich_help_panel=_ENGINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads.", min=1, max=256, show_default="one per core", rich_help_panel=_ENGINE
    ),
]
JSONFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Add a JSON line for each result to FILE as it comes; - is stdout, in place of the "
        "table.",
        rich_help_panel=_OUTPUT,
    ),
]
DType = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"] | None,
    typer.Option(help="Type of weights and activations.", rich_help_panel=_ENGINE),
]


def engine(
    model: Model = None,
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Workloads, repeatable.",
            show_default=", ".join(DEFAULT_NAMES),
            rich_help_panel=_LOAD,
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(help="Runs of each workload.", min=1, max=1000, rich_help_panel=_LOAD)
    ] = 3,
    max_seconds: Annotated[
        float,
        typer.Option(
            help="Begin no further run of a workload after its runs took this long.",
            min=0,
            show_default="no limit",
            rich_help_panel=_LOAD,
        ),
    ] = 1e9,
    weight_format: Annotated[
        str | None,
        typer.Option(help="How weights are stored.", rich_help_panel=_ENGINE),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale.", rich_help_panel=_ENGINE),
    ] = None,
    kv_cache_dtype: Annotated[
        str | None,
        typer.Option(help="How keys and values are stored.", rich_help_panel=_ENGINE),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(help="KV memory, such as 64MiB.", rich_help_panel=_ENGINE),
    ] = None,
    max_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a step, at most.", rich_help_panel=_ENGINE)
    ] = None,
    dtype: DType = None,
    threads: Threads = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any setting of engine.toml; repeatable.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="Text that each JSON line has.", rich_help_panel=_OUTPUT)
    ] = "",
    json_file: JSONFile = None,
) -> None:
    from octavo.benchmarks.engine_speed import Options
    from octavo.cli import bench_engine as command
    from octavo.cli.bench_options import split_list

    named = {
        "weight_format": weight_format,
        "weight_group_size": group_size,
        "kv_cache_dtype": kv_cache_dtype,
        "kv_cache_bytes": kv_memory,
        "max_num_batched_tokens": max_batched_tokens,
        "dtype": dtype,
        "num_threads": threads,
    }
    options = Options(
        model=model,
        workloads=tuple(split_list(workloads)) or DEFAULT_NAMES,
        runs=runs,
        max_s=max_seconds,
        label=label,
    )
    raise typer.Exit(command.run(options, named, assignments or [], json_file))


def kernels_command(
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint whose shapes are measured.",
            show_default="TinyLlama 1.1B's shapes",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    ops: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OP,...",
            help="Ops, repeatable.",
            show_default=", ".join(OPS),
            rich_help_panel=_LOAD,
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option(help="Type of plain weights and activations.", rich_help_panel=_ENGINE),
    ] = "bfloat16",
    kernels: Annotated[
        Literal["auto", "amx", "avx512", "avx2", "portable", "reference"],
        typer.Option(
            help="The fastest, those of an instruction set, or plain torch.",
            rich_help_panel=_ENGINE,
        ),
    ] = "auto",
    threads: Threads = None,
    json_file: JSONFile = None,
) -> None:
    from octavo.benchmarks.kernel_speed import Options
    from octavo.cli import bench_kernels as command
    from octavo.cli.bench_options import split_list

    options = Options(
        model=model,
        ops=tuple(split_list(ops)) or OPS,
        dtype=dtype,
        num_threads=threads,
        kernels=kernels,
    )
    raise typer.Exit(command.run(options, json_file))


def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="JSON lines of any of the engines.")
    ],
    model: Annotated[
        str, typer.Option(metavar="TEXT", help="Only models with this in their name.")
    ] = "",
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw a panel for each measure; .svg and .pdf too. Needs matplotlib.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    from octavo.cli import bench_compare as command

    raise typer.Exit(command.run(files, model, plot_file))


def register(app: typer.Typer) -> None:
    app.command(help=_ENGINE_HELP, epilog=_EPILOG)(engine)
    app.command("kernels", help=_KERNELS_HELP, epilog=_EPILOG)(kernels_command)
    app.command(help=_COMPARE_HELP, epilog="Exit codes: 0 shown, 1 it could not, 2 wrong usage.")(
        compare
    )
