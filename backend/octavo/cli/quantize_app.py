"""Options of `octavo quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_HELP = "\n\n".join(
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
_EPILOG = "Exit codes: 0 written, 1 not, 2 wrong usage, 130 Ctrl-C: finished layers are kept."


def add_quantize(app: typer.Typer) -> None:
    app.command(
        help=_HELP,
        epilog="Exit codes: 0 written, 1 not, 2 wrong usage, 130 Ctrl-C: finished layers are kept.",
    )(quantize)


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
