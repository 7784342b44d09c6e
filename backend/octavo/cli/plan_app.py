"""`octavo plan`: options and exit codes of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from octavo.cli import plan_contracts_app
from octavo.cli.plan_options import (
    DEFAULT_TPOT_S,
    DEFAULT_TTFT_S,
    KV,
    TPOT,
    TTFT,
    Dtype,
    MaxBatchedTokens,
    MaxNumSeqs,
    Weights,
)

_WORKLOAD, _ENGINE, _MACHINE, _OUTPUT = "Workload", "Engine", "Machine and price", "Output"


class _PlanGroup(TyperGroup):
    """`octavo plan MODEL` is `octavo plan model MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["model", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


plan_app = typer.Typer(
    cls=_PlanGroup,
    no_args_is_help=True,
    help="What fits, how fast it answers, what it costs: on paper, before anything runs.",
    epilog="octavo plan MODEL is octavo plan model MODEL. "
    "Try: octavo plan llama-3.1-8b --hardware h200",
)

_MODEL_HELP = "\n\n".join(
    (
        "A model on a machine under a workload: KV memory, requests that fit by format, TTFT and "
        "TPOT, the largest batch within the SLO, replicas, dollars per million good tokens, the "
        "limit that binds, and what each change would free, in the playbook's order.",
        "MODEL is a well-known one (octavo plan model --list), a checkpoint folder or a "
        "config.json. Nothing is downloaded.",
        "Bytes and requests that fit are counted as the engine counts them. Times are bytes and "
        "FLOPs through the machine's peaks and an engine's shares of them; these are assumed "
        "until you fit your own (--constants).",
        "Try: octavo plan llama-3.1-8b --hardware h200,p5.48xlarge --prompt 2048 --output 256 "
        "--shared 1024 --rate 20",
    )
)

Number = float | None


@plan_app.command(
    "model",
    help=_MODEL_HELP,
    epilog="Exit codes: 0 planned, 2 bad input, nothing fits, or no batch meets the SLO.",
)
def model(
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name, folder or config.json.")
    ] = None,
    hardware: Annotated[
        str,
        typer.Option(
            help="Accelerators or instances, with commas between: h200,p5.48xlarge.",
            rich_help_panel=_MACHINE,
        ),
    ] = "",
    measured: Annotated[
        bool,
        typer.Option(
            "--measured",
            help="This machine, with peaks that are measured now (seconds).",
            rich_help_panel=_MACHINE,
        ),
    ] = False,
    price: Annotated[
        str,
        typer.Option(
            help="Dollars per hour of the machine, in place of the file's; of several, one for "
            "each, with commas between: 63,55.",
            rich_help_panel=_MACHINE,
        ),
    ] = "",
    prices: Annotated[
        Path | None,
        typer.Option(
            help="Your prices, as in planner/prices.toml; they go first.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    constants: Annotated[
        Path | None,
        typer.Option(
            help="The engine's shares of the peaks, as bench/plan_check.py fits them.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    prompt: Annotated[
        int, typer.Option(help="Tokens of a prompt.", rich_help_panel=_WORKLOAD)
    ] = 1024,
    output: Annotated[
        int, typer.Option(help="Tokens of an answer.", rich_help_panel=_WORKLOAD)
    ] = 256,
    shared: Annotated[
        int,
        typer.Option(
            help="Tokens that all prompts begin with, such as a system prompt's.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 0,
    rate: Annotated[
        Number,
        typer.Option(
            help="Requests per second.",
            show_default="what the engines of one machine serve",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    load: Annotated[
        float,
        typer.Option(
            help="Share of an engine's capacity to plan for; the rest is for bursts.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 0.7,
    ttft: TTFT = DEFAULT_TTFT_S,
    tpot: TPOT = DEFAULT_TPOT_S,
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kv: KV = "auto",
    max_num_seqs: MaxNumSeqs = None,
    max_batched_tokens: MaxBatchedTokens = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Longest context.", show_default="the model's", rich_help_panel=_ENGINE),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            help="KV memory, such as 8GiB.",
            show_default="as the engine plans it",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all of it; - is stdout.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    list_names: Annotated[
        bool,
        typer.Option(
            "--list", help="Models, hardware and prices that are known.", rich_help_panel=_OUTPUT
        ),
    ] = False,
) -> None:
    from octavo.cli import plan_model as command

    options = command.Options(
        model=name,
        hardware=tuple(dict.fromkeys(part.strip() for part in hardware.split(",") if part.strip())),
        measured=measured,
        usd_per_hour=tuple(part.strip() for part in price.split(",")) if price else (),
        prices=prices,
        constants=constants,
        prompt_tokens=prompt,
        output_tokens=output,
        shared_tokens=shared,
        requests_per_s=rate,
        load_ratio=load,
        ttft_s=ttft,
        tpot_s=tpot,
        dtype=dtype,
        weight_format=weights,
        kv_cache_dtype=kv,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_batched_tokens,
        max_model_len=max_model_len,
        kv_memory=kv_memory,
        json_file=json_file,
    )
    raise typer.Exit(command.show_known() if list_names else command.run(options))


plan_contracts_app.register(plan_app)
