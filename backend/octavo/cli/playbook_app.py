"""Options and exit codes of `octavo playbook`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli.plan_options import DEFAULT_TPOT_S, DEFAULT_TTFT_S

_ENGINE = "Engine"
_HELP = "\n\n".join(
    (
        "What does each step of the playbook save on this machine, with this model? Measures the "
        "same requests stage by stage, one switch more in each: 0a transformers generate, 0b "
        "contiguous KV memory and static batches, then paged KV memory, continuous batching, the "
        "prefix cache, int8 KV memory and int4 weights.",
        "All stages have the same bytes of memory. Users in a closed loop, 1, 2, 4 … of them: a "
        "stage's numbers are those of the load with the most good tokens per second, which are the "
        "tokens of requests within --slo-ttft-s and --slo-tpot-s.",
        "The quantized stages stand behind the quality gate: what it refuses is shown and not "
        "counted. It reads --text, .jsonl or .txt of the kind that the model will see.",
        "Results are kept in --out as they come: the same command goes on where it was "
        "interrupted. It ends with playbook.json, playbook.md and playbook.html there.",
        "Try: octavo playbook models/octavo-tiny --quick --out /tmp/playbook",
        "Then: octavo playbook my-llama --text chats.jsonl --price-per-hour 6.88",
    )
)
_EPILOG = (
    "Exit codes: 0 measured, 1 a stage failed, 2 wrong usage, or an SLO that no stage meets, "
    "130 interrupted."
)


def add_playbook(app: typer.Typer) -> None:
    app.command(help=_HELP, epilog=_EPILOG)(playbook)


def playbook(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or id on the Hugging Face hub.")],
    workload: Annotated[
        Literal["chat", "rag", "distinct"],
        typer.Option(
            help="chat: one system prompt in common. rag: one of four documents. distinct: nothing."
        ),
    ] = "chat",
    price_per_hour: Annotated[
        float | None,
        typer.Option(metavar="USD", help="Of this machine. Without, cost is in its seconds."),
    ] = None,
    slo_ttft_s: Annotated[
        float, typer.Option(help="Longest good time to the first token.")
    ] = DEFAULT_TTFT_S,
    slo_tpot_s: Annotated[
        float, typer.Option(help="Longest good time per further token.")
    ] = DEFAULT_TPOT_S,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results and reports.", show_default="playbook-MODEL"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in 3 minutes: short requests, few loads.")
    ] = False,
    skip_transformers: Annotated[
        bool, typer.Option("--skip-transformers", help="Without stage 0a, the slowest one.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(help="What the gate reads.", show_default="heldout.jsonl of MODEL's folder"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text for GPTQ; without, int4 weights are rounded to the nearest.",
            show_default="calibration.jsonl of MODEL's folder",
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Perplexity that may be lost, as a ratio, up to 0.02.")
    ] = 0.01,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="KV memory, such as 2GiB.", show_default="8 longest requests"
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens that a request may have; workloads shrink to it.",
            show_default="the workload's longest request",
        ),
    ] = None,
    users: Annotated[int, typer.Option(help="The most at once.")] = 32,
    rounds: Annotated[int, typer.Option(help="Stages take turns so often.")] = 3,
    seed: Annotated[int, typer.Option(help="Of prompts and lengths.")] = 0,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        typer.Option(help="Of the computation.", rich_help_panel=_ENGINE),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:0.", rich_help_panel=_ENGINE)
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.", min=1, rich_help_panel=_ENGINE)
    ] = None,
) -> None:
    from octavo.cli import playbook as command
    from octavo.playbook.options import Options

    def path(file: Path | None) -> str | None:
        return None if file is None else str(file)

    options = Options(
        model=model,
        out=str(out or ""),
        workload=workload,
        usd_per_hour=price_per_hour,
        slo_ttft_s=slo_ttft_s,
        slo_tpot_s=slo_tpot_s,
        margin=margin,
        text=path(text),
        calibration=path(calibration),
        context_tokens=context,
        most_users=users,
        rounds=rounds,
        seed=seed,
        dtype=dtype,
        device=device,
        num_threads=threads,
        quick=quick,
        skip_transformers=skip_transformers,
    )
    raise typer.Exit(command.run(options, kv_memory))
