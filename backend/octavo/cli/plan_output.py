"""What the commands of `octavo plan` share in what they give."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octavo.errors import ConfigError

EXIT_PLANNED, EXIT_BAD_INPUT = 0, 2
NONE = "–"


class PipeConsole(Console):
    """Falls silent when its reader has had enough, as `head` has."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence_stdout()


def _silence_stdout() -> None:
    """What is still buffered goes nowhere, or Python would complain as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(file: Path, content: dict[str, Any]) -> None:
    """- is stdout. What is infinite is null. Raises ConfigError."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if file == Path("-"):
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            _silence_stdout()
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"--json = {file}: {exc}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


def plain_table(*headings: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return table


def usd(value: float | None) -> str:
    if value is None:
        return NONE
    if value == float("inf"):
        return "∞"
    if value >= 1000:
        return f"${value:,.0f}"
    return f"${value:,.3g}" if value < 1 else f"${value:,.2f}"
