"""`octavo playbook`: has each stage measured, shows the table and writes the reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from octavo.cli.bench_options import parsed_bytes
from octavo.cli.bench_process import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_MEASURED
from octavo.cli.checkpoint import resolve
from octavo.cli.playbook_run import Measuring, Tell, one_event
from octavo.errors import OctavoError
from octavo.playbook import report
from octavo.playbook.findings import Findings
from octavo.playbook.options import Options, Settled
from octavo.playbook.tables import SHORT_HEADINGS, price_line, short_cells
from octavo.playbook.verdict import nothing_is_good, sentence
from octavo.texts import read_texts

EXIT_USAGE = 2

_out = Console(highlight=False, markup=False)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def run(options: Options, kv_memory: str | None) -> int:
    """The exit code."""
    try:
        options = _checked(options, kv_memory)
        found = one_event("octavo.playbook.settle_worker", asdict(options), "settled")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_USAGE
    settled = Settled.from_json(found)
    try:
        with _progress(options) as tell:
            findings = Measuring(options, settled, tell).run()
        if (reason := nothing_is_good(findings)) is not None:
            _err.print(f"octavo: {reason}", style="bold red")
            return EXIT_USAGE
        files = report.write(findings, Path(options.out))
    except KeyboardInterrupt:
        _err.print(
            f"octavo: stopped; the same command goes on with what {options.out} has",
            style="bold yellow",
        )
        return EXIT_INTERRUPTED
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_FAILED
    _show(findings, files)
    return EXIT_MEASURED


def _checked(options: Options, kv_memory: str | None) -> Options:
    """With the model's folder and what follows from it. Raises OctavoError, OSError before
    minutes of measuring."""
    options.check()
    model = resolve(options.model)
    text = options.text or _beside(model, "heldout.jsonl")
    calibration = options.calibration or _beside(model, "calibration.jsonl")
    for file in (text, calibration):
        if file is not None:
            read_texts(Path(file))
    out = Path(options.out or f"playbook-{model.name}").expanduser()
    out.mkdir(parents=True, exist_ok=True)
    return replace(
        options,
        model=str(model),
        text=text,
        calibration=calibration,
        out=str(out),
        kv_memory_bytes=parsed_bytes(kv_memory),
    )


def _beside(model: Path, name: str) -> str | None:
    """A text that the model's folder has, as octavo-tiny's does."""
    return str(model / name) if (model / name).is_file() else None


@contextmanager
def _progress(options: Options) -> Iterator[Tell]:
    """On stderr: a bar, or lines where nobody watches."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
        task = progress.add_task("", total=Measuring.num_loads(options))
        said = ""

        def tell(text: str, loads: int, detail: str) -> None:
            nonlocal said
            if text:
                progress.update(task, description=f"{text} {detail}")
                is_loud = "SKIPPED" in text or "NOT JUDGED" in text
                if text != said and (not _err.is_terminal or is_loud):
                    _err.print(f"octavo: {text}")
                said = text
            progress.advance(task, loads)

        yield tell


def _show(findings: Findings, files: list[Path]) -> None:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate(SHORT_HEADINGS):
        is_number = 0 < number < len(SHORT_HEADINGS) - 1
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    for row in findings.rows:
        table.add_row(*short_cells(row))
    _out.print(table)
    _out.print(f"\n{price_line(findings)}\n", soft_wrap=True)
    _out.print(sentence(findings), style="bold", soft_wrap=True)
    _out.print()
    for file in files:
        _out.print(f"written   {file}", soft_wrap=True)
