"""`octavo bench engine`: asks a worker process for the numbers, and shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from octavo.benchmarks.engine_speed import DEFINITIONS, Line, Options
from octavo.benchmarks.workloads import parse_workload
from octavo.cli.arguments import engine_overrides
from octavo.cli.bench_lines import STDOUT, json_lines, table_console
from octavo.cli.bench_process import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_MEASURED, worker
from octavo.cli.checkpoint import resolve
from octavo.cli.paths import default_model
from octavo.errors import OctavoError

_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

# Heading, field, digits behind the point.
_COLUMNS = (
    ("decode\ntok/s", "decode_tps", 1),
    ("prefill\ntok/s", "prefill_tps", 0),
    ("TTFT\nms", "ttft_ms", 1),
    ("TPOT\nms", "tpot_ms", 2),
    ("forward\nµs", "forward_us", 0),
    ("host\nµs", "host_us", 0),
    ("MB a\nstep", "step_mb", 1),
    ("read\nGB/s", "read_gbs", 1),
    ("of roof-\nline, %", "roofline_percent", 0),
    ("RSS\nMiB", "rss_mib", 0),
)


def run(
    options: Options,
    named_settings: Mapping[str, object],
    assignments: Sequence[str],
    json_file: Path | None,
) -> int:
    """The exit code. Settings of the engine: from options of their own, and from --set."""
    lines: list[Line] = []
    try:
        for name in options.workloads:
            parse_workload(name)
        options = replace(
            options,
            model=str(resolve(options.model or str(default_model()))),
            settings=engine_overrides(named_settings, assignments),
        )
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
    total = len(options.workloads)
    try:
        with worker("octavo.benchmarks.engine_speed_worker", asdict(options)) as events:
            for event in events:
                lines.append(event["line"])
                write(lines[-1])
                _err.print(f"octavo: {len(lines)} of {total}: {_progress(lines[-1])}")
    except KeyboardInterrupt:
        _err.print(f"octavo: stopped after {len(lines)} of {total} workloads", style="bold yellow")
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any("error" in line for line in lines) else EXIT_MEASURED


def _progress(line: Line) -> str:
    if "error" in line:
        return f"{line['workload']}: {line['error']}"
    return f"{line['workload']}: {line['decode_tps']:,.1f} output tokens/s in {line['runs']} runs"


def show(lines: list[Line], console: Console) -> None:
    first = lines[0]
    console.print(
        f"{first['model']}: weights {first['weight_format']} "
        f"({first['weight_bytes'] / 1e6:.1f} MB a step), KV {first['kv_cache_dtype']}, "
        f"{first['threads']} threads, {first['kernels']} kernels ({first['isa']}), "
        f"loaded in {first['load_s']} s\n",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("\nworkload", no_wrap=True)
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        if "error" not in line:
            figures = _figures(line)
            cells = (f"{figures[name]:,.{digits}f}" for _, name, digits in _COLUMNS)
            table.add_row(line["workload"], *cells)
    console.print(table)
    for line in lines:
        if "error" in line:
            console.print(f"{line['workload']}: {line['error']}", style="bold red")
    if first["quality"] is not None:
        formats = f"weights {first['weight_format']}, KV {first['kv_cache_dtype']}"
        console.print(f"\nquality of {formats}: {first['quality']}", style="bold")
    console.print()
    for term, meaning in DEFINITIONS.items():
        console.print(f"{term}: {meaning}.", style="dim")


def _figures(line: Line) -> dict[str, float]:
    return {
        **line,
        "ttft_ms": 1e3 * line["ttft_s"],
        "step_mb": line["bytes_per_step"] / 1e6,
        "roofline_percent": 100 * line["roofline_ratio"],
    }
