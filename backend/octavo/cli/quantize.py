"""`octavo quantize`: asks a worker process to write the folder, and shows how far it is."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from octavo.cli.bench_process import EXIT_FAILED, EXIT_INTERRUPTED, worker
from octavo.cli.checkpoint import resolve
from octavo.errors import OctavoError
from octavo.quantization.job import QuantizeOptions

_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def run(options: QuantizeOptions) -> int:
    """The exit code."""
    out = Path(options.out).expanduser()
    try:
        options = replace(options, model=str(resolve(options.model)), out=str(out))
        _write(options)
    except KeyboardInterrupt:
        _err.print(
            "octavo: stopped; the same command goes on behind the layers that are finished",
            style="bold yellow",
        )
        return EXIT_INTERRUPTED
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_FAILED
    command = shlex.join(["octavo", "gate", options.model, str(out), "--text", "FILE"])
    _err.print(f"octavo: {out} is complete. Its quality has not been measured; serve it after")
    _err.print(f"  {command}")
    return 0


def _write(options: QuantizeOptions) -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with (
        Progress(*columns, console=_err) as progress,
        worker("octavo.quantization.worker", asdict(options)) as events,
    ):
        bar = progress.add_task(f"{options.method}, {options.bits} bits", total=None)
        for event in events:
            if event["kept"] and event["done"] == event["kept"]:
                progress.console.print(f"octavo: {event['kept']} shards are there already")
            progress.update(bar, total=event["of"], completed=event["done"])
