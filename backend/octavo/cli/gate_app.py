"""Options of `octavo gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli.gate_usage import GateCommand

_CANDIDATE, _ENGINE = "Candidate", "Engine"

_HELP = "\n\n".join(
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
_EPILOG = (
    "Exit codes: 0 pass, 1 fail, 2 inconclusive, 3 no signal, 4 not measured (wrong usage, "
    "or something that cannot be read), 130 Ctrl-C."
)


def add_gate(app: typer.Typer) -> None:
    app.command(cls=GateCommand, help=_HELP, epilog=_EPILOG)(gate)


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
