"""`octavo bench identical`: asks a worker process for the numbers, and shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from octavo.benchmarks import identical
from octavo.benchmarks.identical import IMPOSSIBLE, ROWS, Medians, Options, Sample, Settings
from octavo.benchmarks.records import LoadRecord
from octavo.cli.bench_options import check_file, check_picture, parsed_bytes
from octavo.cli.bench_process import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_MEASURED, worker
from octavo.cli.checkpoint import resolve
from octavo.cli.paths import default_model
from octavo.errors import OctavoError

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
        check_file("--json", json_file)
        check_picture("--plot", plot_file)
        options = replace(
            options,
            model=str(resolve(options.model or str(default_model()))),
            kv_cache_bytes=parsed_bytes(kv_memory),
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
        with (
            worker("octavo.benchmarks.identical_worker", asdict(options)) as events,
            _progress(options) as advance,
        ):
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
    quality = samples[0].load.quality
    facts = settings.dtype if quality is None else f"{settings.dtype}, {quality}"
    return (
        f"{Path(settings.model).name} ({facts}), {settings.prompt_tokens} + "
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
