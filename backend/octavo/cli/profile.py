"""`octavo profile`: asks a worker process for the numbers, and shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from octavo.benchmarks.profile import DEFINITIONS, Options, Result
from octavo.benchmarks.profile_words import (
    OPERATION_HEADINGS,
    gap_rows,
    gap_sentence,
    headline,
    operation_rows,
    peaks_line,
    title,
)
from octavo.cli.arguments import engine_overrides
from octavo.cli.bench_lines import STDOUT, table_console
from octavo.cli.bench_options import check_file, check_picture
from octavo.cli.bench_process import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MEASURED,
    WorkerEndedError,
    worker,
)
from octavo.cli.checkpoint import resolve
from octavo.cli.paths import default_model
from octavo.errors import OctavoError

EXIT_BAD_INPUT = 2
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Outputs:
    json: Path | None = None
    plot: Path | None = None
    html: Path | None = None
    trace: Path | None = None


def run(
    options: Options,
    named_settings: Mapping[str, object],
    assignments: Sequence[str],
    outputs: Outputs,
) -> int:
    """The exit code."""
    try:
        options.check()
        check_picture("--plot", outputs.plot)
        check_file("--html", outputs.html)
        check_file("--trace", outputs.trace)
        check_file("--json", None if outputs.json == STDOUT else outputs.json)
        options = replace(
            options,
            model=str(resolve(options.model or str(default_model()))),
            settings=engine_overrides(named_settings, assignments),
        )
        options.check()
        result = _measured(options)
        _write(result, outputs)
    except KeyboardInterrupt:
        _err.print("octavo: stopped; nothing was written", style="bold yellow")
        return EXIT_INTERRUPTED
    except (WorkerEndedError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_FAILED
    except OctavoError as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_BAD_INPUT
    return EXIT_MEASURED


def _measured(options: Options) -> Result:
    """The last event of the worker. Raises OctavoError."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with (
        Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress,
        worker("octavo.benchmarks.profile_worker", asdict(options)) as events,
    ):
        bar = progress.add_task("starting", total=None)
        result: Result | None = None
        latest = "loading"
        for event in events:
            if "result" in event:
                result = event["result"]
                continue
            now = event["progress"]
            if now["step"] != latest and not _err.is_terminal:
                _err.print(f"octavo: measuring {now['step']}")
            latest = now["step"]
            progress.update(bar, description=now["step"], completed=now["done"], total=now["of"])
    if result is None:
        raise WorkerEndedError("the working process ended without a result")
    return result


def _write(result: Result, outputs: Outputs) -> None:
    if outputs.json == STDOUT:
        print(json.dumps(result))
    else:
        show(result, table_console())
    if outputs.json is not None and outputs.json != STDOUT:
        outputs.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if outputs.plot is not None:
        from octavo.benchmarks.profile_plot import draw

        draw(result, outputs.plot)
    if outputs.html is not None:
        from octavo.benchmarks.profile_page import page

        outputs.html.write_text(page(result), encoding="utf-8")
    for file in (outputs.json, outputs.plot, outputs.html, outputs.trace):
        if file is not None and file != STDOUT:
            _err.print(f"octavo: wrote {file}")


def show(result: Result, console: Console) -> None:
    console.print(title(result), style="bold", soft_wrap=True)
    console.print(peaks_line(result), soft_wrap=True)
    for note in result["notes"]:
        console.print(f"NOT AVAILABLE: {note}", style="bold yellow", soft_wrap=True)
    for name, phase in result["phases"].items():
        console.print(f"\n{headline(result, name)}\n", style="bold", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for index, heading in enumerate(OPERATION_HEADINGS):
            justify = "left" if index == 0 or heading.endswith("bound") else "right"
            table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in operation_rows(phase):
            table.add_row(*row)
        console.print(table)
        gaps = Table(box=None, pad_edge=False)
        gaps.add_column("\nthe step's time", no_wrap=True)
        gaps.add_column("\nms", justify="right", no_wrap=True)
        gaps.add_column("\n%", justify="right", no_wrap=True)
        gaps.add_column("")
        for row in gap_rows(phase):
            gaps.add_row(*row)
        console.print(gaps)
        console.print(gap_sentence(phase), soft_wrap=True)
    console.print()
    for term, meaning in DEFINITIONS.items():
        console.print(f"{term}: {meaning}.", style="dim", soft_wrap=True)
