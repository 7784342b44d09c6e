"""Options that several commands of planning share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

_SLO, _ENGINE = "SLO", "Engine"

# As [slo] of engine.toml has them. They are not read there: it would slow down each start.
DEFAULT_TTFT_S, DEFAULT_TPOT_S = 2.0, 0.1

TTFT = Annotated[float, typer.Option(help="Seconds to the first token.", rich_help_panel=_SLO)]
TPOT = Annotated[float, typer.Option(help="Seconds for each further one.", rich_help_panel=_SLO)]
Weights = Annotated[
    Literal["auto", "int8", "int4", "w8a8", "w4a8"],
    typer.Option(help="Format of the weights.", rich_help_panel=_ENGINE),
]
KV = Annotated[
    Literal["auto", "int8", "fp8"],
    typer.Option(help="Format of keys and values.", rich_help_panel=_ENGINE),
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option(help="What it is computed in.", rich_help_panel=_ENGINE),
]
MaxNumSeqs = Annotated[
    int | None,
    typer.Option(
        help="Requests decoded at once.",
        min=1,
        show_default="256 on a GPU, 32 on a CPU",
        rich_help_panel=_ENGINE,
    ),
]
MaxBatchedTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens of a step.",
        min=1,
        show_default="8,192 on a GPU, 256 on a CPU",
        rich_help_panel=_ENGINE,
    ),
]
