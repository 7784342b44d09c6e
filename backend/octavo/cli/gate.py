"""`octavo gate`: asks a worker process for the measurement, and shows what came of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from octavo.cli.bench_process import EXIT_INTERRUPTED, worker
from octavo.cli.checkpoint import resolve
from octavo.cli.gate_usage import EXIT_NOT_MEASURED
from octavo.errors import OctavoError
from octavo.quality.options import GateOptions
from octavo.quality.verdict import Numbers, Outcome, Verdict, figures

_out = Console(highlight=False, markup=False)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
_STYLES = {
    Outcome.PASS: "bold green",
    Outcome.FAIL: "bold red",
    Outcome.INCONCLUSIVE: "bold yellow",
    Outcome.NO_SIGNAL: "bold yellow",
}


def run(options: GateOptions) -> int:
    """The exit code."""
    try:
        options = replace(
            options,
            baseline=str(resolve(options.baseline)),
            candidate=str(resolve(options.candidate)),
        )
        result = _measured(options)
    except KeyboardInterrupt:
        _err.print("octavo: stopped before there was a verdict", style="bold yellow")
        return EXIT_INTERRUPTED
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_NOT_MEASURED
    return _show(result["record"], result["notes"], Path(result["folder"]))


def _measured(options: GateOptions) -> dict[str, Any]:
    """The last event of the worker, with the `notes` before it. Raises OctavoError."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with (
        Progress(*columns, console=_err, transient=True) as progress,
        worker("octavo.quality.gate_worker", asdict(options)) as events,
    ):
        bar = progress.add_task("starting", total=None)
        result, notes = None, list[str]()
        for event in events:
            if "record" in event:
                result = {**event, "notes": notes}
                continue
            if "note" in event:
                notes.append(event["note"])
                continue
            now = event["progress"]
            progress.update(bar, description=now["step"], completed=now["done"], total=now["of"])
    if result is None:
        raise OctavoError("the measuring process ended without a verdict")
    return result


def _show(record: dict[str, Any], notes: list[str], folder: Path) -> int:
    numbers = TypeAdapter(Numbers).validate_python(record["numbers"])
    table = Table(box=None, pad_edge=False)
    for heading in ("", "measured", "limit"):
        table.add_column(heading, justify="left" if heading != "measured" else "right")
    for row in figures(numbers, record["margin"]):
        table.add_row(*row)
    text = record["text"]
    _out.print(
        f"{record['candidate']['name']} beside {record['baseline']['name']} on {text['name']}, "
        f"windows of up to {text['longest']:,} tokens\n",
        soft_wrap=True,
    )
    _out.print(table)
    outcome = Outcome(record["outcome"])
    verdict = Verdict(outcome, record["reason"])
    _out.print(f"\n{verdict.line}\n", style=_STYLES[outcome], soft_wrap=True)
    for note in notes:
        _out.print(f"note: {note}\n", style="yellow", soft_wrap=True)
    _out.print(f"evidence  {folder / 'quality.json'}", soft_wrap=True)
    _out.print(f"report    {folder / record['report']}", soft_wrap=True)
    return outcome.exit_code
