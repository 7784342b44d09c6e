"""`octavo bench compare`: results of several engines, as ratios and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from octavo.benchmarks.compare import (
    MEASURES,
    OURS,
    RATIO_RULE,
    Comparison,
    Ratio,
    compare,
    ratios,
    read_lines,
)
from octavo.benchmarks.weight_bits import RULE
from octavo.cli.bench_lines import table_console
from octavo.cli.bench_options import check_picture
from octavo.cli.bench_process import EXIT_FAILED, EXIT_MEASURED
from octavo.errors import ConfigError, OctavoError

_HEADINGS = {"decode_tps": "decode\ntok/s", "prefill_tps": "prefill\ntok/s", "ttft_s": "TTFT\nms"}
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def run(files: Sequence[Path], model: str, plot_file: Path | None) -> int:
    """The exit code."""
    try:
        check_picture("--plot", plot_file)
        comparisons = compare(read_lines(files), model)
        if not comparisons:
            raise ConfigError(f"--model = {model!r}: no line without an error has such a model")
        console = table_console()
        for comparison in comparisons:
            show(comparison, console)
        console.print(f"{RATIO_RULE} {RULE}", style="dim")
        if plot_file is not None:
            from octavo.benchmarks.compare_plot import draw

            draw(comparisons, plot_file)
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_FAILED
    return EXIT_MEASURED


def show(comparison: Comparison, console: Console) -> None:
    ours = [engine for engine in comparison.engines if engine.peer == OURS]
    if not ours:
        console.print(f"{comparison.model}: no line of {OURS}\n")
        return
    table = Table(box=None, pad_edge=False, title=comparison.model, title_justify="left")
    table.add_column("\nworkload", no_wrap=True)
    table.add_column("\nbits", justify="right")
    for measure in MEASURES:
        table.add_column(_HEADINGS[measure.field], justify="right", no_wrap=True)
        table.add_column("\nratio", justify="right", no_wrap=True)
        table.add_column("\nfastest other", no_wrap=True)
    table.add_column("of roof-\nline, %", justify="right", no_wrap=True)
    for workload, by_engine in comparison.results.items():
        for engine in ours:
            if engine in by_engine:
                found = ratios(by_engine, engine)
                roofline = by_engine[engine].get("roofline_ratio")
                table.add_row(
                    workload, str(engine.bits), *_cells(found),
                    "–" if roofline is None else f"{100 * roofline:.0f}",
                )  # fmt: skip
    console.print(table)
    console.print()


def _cells(found: dict[str, Ratio]) -> list[str]:
    cells = []
    for measure in MEASURES:
        ratio = found.get(measure.field)
        unit = 1e3 if measure.field == "ttft_s" else 1.0
        if ratio is None:
            cells += ["–", "–", "–"]
        elif ratio.fastest is None or ratio.ratio is None:
            cells += [f"{unit * ratio.ours:,.1f}", "–", "–"]
        else:
            other = f"{ratio.peer} {unit * ratio.fastest:,.1f}"
            cells += [f"{unit * ratio.ours:,.1f}", f"×{ratio.ratio:.2f}", other]
    return cells
