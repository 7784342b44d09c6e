"""`octavo bench kernels`: asks a worker process for the numbers, and shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from octavo.benchmarks.kernel_speed import DEFINITIONS, Line, Options, check_ops
from octavo.cli.bench_lines import STDOUT, json_lines, table_console
from octavo.cli.bench_process import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_MEASURED, worker
from octavo.cli.checkpoint import resolve
from octavo.cli.paths import cache_dir
from octavo.errors import OctavoError

_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def run(options: Options, json_file: Path | None) -> int:
    """The exit code."""
    lines: list[Line] = []
    try:
        check_ops(options.ops)
        if options.model is not None:
            options = replace(options, model=str(resolve(options.model)))
        options = replace(options, kernel_cache=str(cache_dir() / "kernels"))
        with json_lines(json_file) as write:
            code = _measure(options, lines, write)
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        code = EXIT_FAILED
    if lines and json_file != STDOUT:
        show(lines, table_console())
    return code


def _measure(options: Options, lines: list[Line], write: Callable[[Line], None]) -> int:
    """Adds to `lines` as far as it comes. Raises OctavoError."""
    try:
        with worker("octavo.benchmarks.kernel_speed_worker", asdict(options)) as events:
            for event in events:
                line = event["line"]
                lines.append(line)
                write(line)
                _err.print(
                    f"octavo: {line['op']} {line['format']} {line['shape']}: {line['time_us']} µs"
                )
    except KeyboardInterrupt:
        _err.print(f"octavo: stopped after {len(lines)} rows", style="bold yellow")
        return EXIT_INTERRUPTED
    return EXIT_MEASURED


def show(lines: list[Line], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("op", "format", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("µs", "GB/s", "GFLOP/s", "share, %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("of", no_wrap=True)
    table.add_column("rotated MiB", justify="right", no_wrap=True)
    for line in lines:
        is_memory = line["bound"] == "memory"
        peak = (
            f"{line['read_gbs']:.1f} GB/s" if is_memory else f"{line['matrix_gflops']:,.0f} GFLOP/s"
        )
        table.add_row(
            line["op"], line["format"], line["shape"], f"{line['time_us']:,.1f}",
            f"{line['gbs']:.1f}", f"{line['gflops']:,.0f}", f"{100 * line['share_ratio']:.0f}",
            peak, f"{line['rotated_mib']:,.0f}",
        )  # fmt: skip
    console.print(f"{lines[0]['threads']} threads, {lines[0]['kernels']} kernels\n")
    console.print(table)
    console.print()
    for term, meaning in DEFINITIONS.items():
        console.print(f"{term}: {meaning}.", style="dim")
