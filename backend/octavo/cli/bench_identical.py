"""`octavo bench identical`: asks a worker process for the numbers, and shows them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from octavo.benchmarks import identical
from octavo.benchmarks.identical import IMPOSSIBLE, ROWS, Medians, Options, Sample, Settings
from octavo.benchmarks.records import LoadRecord
from octavo.cli.checkpoint import resolve
from octavo.cli.paths import default_model
from octavo.config import ByteSize
from octavo.errors import ConfigError, OctavoError

EXIT_MEASURED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

_PICTURES = (".png", ".svg", ".pdf")
_out = Console(highlight=False, markup=False)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def run(
    options: Options,
    *,
    kv_memory: str | None = None,
    json_file: Path | None = None,
    plot_file: Path | None = None,
) -> int:
    """The exit code."""
    try:
        _check_files(json_file, plot_file)
        options = replace(
            options,
            model=str(resolve(options.model or str(default_model()))),
            kv_cache_bytes=_parsed_bytes(kv_memory),
        )
        settings, samples, code = _measured(options)
        if settings is None or not samples:
            _err.print("octavo: stopped before anything was measured", style="bold yellow")
            return code
        show(settings, samples, _out)
        if json_file is not None:
            text = json.dumps(identical.document(settings, samples), indent=2, ensure_ascii=False)
            json_file.write_text(text + "\n", encoding="utf-8")
        if plot_file is not None:
            from octavo.benchmarks.identical_plot import draw

            draw(settings, identical.medians(samples), plot_file)
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_FAILED
    return code


def _measured(options: Options) -> tuple[Settings | None, list[Sample], int]:
    """As far as it came until Ctrl-C, and the exit code. Raises OctavoError."""
    settings: Settings | None = None
    samples: list[Sample] = []
    try:
        with _worker(options) as events, _progress(options) as advance:
            for event in events:
                if "settings" in event:
                    settings = Settings(**event["settings"])
                else:
                    samples.append(_sample(event["sample"]))
                    advance(samples[-1])
    except KeyboardInterrupt:
        if samples:
            begun = samples[-1].round + 1
            _err.print(f"octavo: stopped in round {begun} of {options.rounds}", style="bold yellow")
        return settings, samples, EXIT_INTERRUPTED
    return settings, samples, EXIT_MEASURED


def _parsed_bytes(text: str | None) -> int | None:
    """Raises ConfigError."""
    if text is None:
        return None
    try:
        return TypeAdapter[int](ByteSize).validate_python(text)
    except ValidationError:
        raise ConfigError(
            f"--kv-memory = {text}: should be a number of bytes above 0, such as 64MiB"
        ) from None


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Before a minute of measuring. Raises ConfigError."""
    for name, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"{name} = {file}: no folder {file.absolute().parent}")
    if plot_file is None:
        return
    if plot_file.suffix not in _PICTURES:
        raise ConfigError(f"--plot = {plot_file}: should end in {', '.join(_PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"--plot = {plot_file}: matplotlib is not installed; "
            f"{sys.executable} -m pip install 'octavo[plot]', or matplotlib itself"
        )


@contextmanager
def _worker(options: Options) -> Iterator[Iterator[dict[str, Any]]]:
    """Events of a worker, which ends with the context. Raises OctavoError if it does not get
    through."""
    with subprocess.Popen(
        [sys.executable, "-m", "octavo.benchmarks.identical_worker"],
        # As the server's environment has it; the caller's own value comes first.
        env={"GOMP_SPINCOUNT": "5000", **os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for this process, which then closes the worker's stdin.
        preexec_fn=_ignore_ctrl_c,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(options)) + "\n")
            process.stdin.flush()
            yield _events(process.stdout)
            if process.wait() != 0:
                raise OctavoError(f"the measuring process ended with {process.returncode}")
        finally:
            process.kill()


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            raise OctavoError(event["error"])
        yield event


def _sample(values: dict[str, Any]) -> Sample:
    return Sample(**{**values, "load": LoadRecord.from_json(values["load"])})


@contextmanager
def _progress(options: Options) -> Iterator[Callable[[Sample], None]]:
    """On stderr: a bar, or lines where nobody watches."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
    ) as progress:
        task = progress.add_task("loading", total=options.rounds * len(ROWS) * 2)

        def advance(sample: Sample) -> None:
            text = (
                f"round {sample.round + 1} of {options.rounds}: {sample.row}: "
                f"{sample.num_requests} in {sample.load.duration_s:.2f} s"
            )
            progress.update(task, advance=1, description=text)
            if not _err.is_terminal:
                _err.print(f"octavo: {text}")

        yield advance


# What the table shows, in groups: heading, figure, unit, and whether N / 1 is worth a line.
_GROUPS: tuple[tuple[tuple[str, str, str, bool], ...], ...] = (
    (
        ("TTFT p50, ms", "ttft_p50_s", "ms", True),
        ("TTFT max, ms", "ttft_max_s", "ms", False),
        ("end to end p50, ms", "e2e_p50_s", "ms", True),
        ("end to end max, ms", "e2e_max_s", "ms", False),
        ("output tokens/s", "output_tps", "number", True),
    ),
    (
        ("computed tokens", "computed_tokens", "number", True),
        ("hit tokens", "hit_tokens", "number", False),
    ),
    (
        ("KV reserved, MiB", "kv_reserved_bytes", "MiB", True),
        ("KV in use, MiB", "kv_filled_bytes", "MiB", False),
        ("running at once", "running", "number", False),
    ),
)


def show(settings: Settings, samples: list[Sample], console: Console) -> None:
    console.print(_headline(settings, samples), soft_wrap=True)
    console.print(_table(settings, identical.medians(samples)))
    console.print(f"\n{IMPOSSIBLE}\n")
    for term, meaning in identical.DEFINITIONS.items():
        console.print(f"{term}: {meaning}.", style="dim")


def _table(settings: Settings, found: Medians) -> Table:
    """For each figure a line of one request, a line of N, and maybe their ratio."""
    ratios = identical.ratios(settings, found)
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("\n\nrequests", justify="right", no_wrap=True)
    for row in ROWS:
        table.add_column(row.replace(", ", "\n"), justify="right", no_wrap=True)
    counts = (1, settings.num_requests)
    for group in _GROUPS:
        table.add_row()
        for heading, figure, unit, has_ratio in group:
            for count, title in zip(counts, (heading, ""), strict=True):
                values = [found.get(row, {}).get(count, {}).get(figure) for row in ROWS]
                table.add_row(title, str(count), *(_shown(value, unit) for value in values))
            if has_ratio:
                values = [ratios.get(row, {}).get(figure) for row in ROWS]
                shown = ("–" if value is None else f"×{value:.2f}" for value in values)
                table.add_row("", f"{counts[1]}/1", *shown, style="bold")
    return table


def _headline(settings: Settings, samples: list[Sample]) -> str:
    contexts = settings.kv_cache_bytes / settings.context_bytes
    rounds = len({sample.round for sample in samples})
    return (
        f"{Path(settings.model).name} ({settings.dtype}), {settings.prompt_tokens} + "
        f"{settings.output_tokens} tokens, context {settings.context_tokens}, blocks of "
        f"{settings.block_size}, KV memory {_shown(settings.kv_cache_bytes, 'MiB')} MiB "
        f"({contexts:.3g} contexts); medians of {rounds} round{'s' * (rounds > 1)}\n"
    )


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "ms":
        return f"{value * 1e3:,.0f}" if value >= 0.1 else f"{value * 1e3:.1f}"
    if unit == "MiB":
        return f"{value / 2**20:.2f}"
    return f"{value:,.0f}"
