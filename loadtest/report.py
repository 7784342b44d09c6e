"""From a folder of raw records to table, summary.json and report.html.

    python -m loadtest.report FOLDER

does it again, also for a run that was killed and after the files of workers on other hosts have
been copied into the folder.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loadtest import tables
from loadtest.records import Record, read
from loadtest.settings import RunSettings
from loadtest.summary import Run, counted, summarize_run

EXIT_INVALID = 3


def write(folder: Path) -> Run:
    """Reads all records of a run, prints the table and writes both files beside them. Raises
    ValueError for a folder without records."""
    files = read(folder)
    run = summarize_run(files)
    print(tables.as_text(run), flush=True)
    summary = folder / "summary.json"
    summary.write_text(json.dumps(asdict(run), indent=2, ensure_ascii=False) + "\n", "utf-8")
    records = [record for file in files for record in file.records]
    page = folder / "report.html"
    page.write_text(html(run, records), "utf-8")
    print(
        f"\nRaw records: {folder}/requests-*.jsonl\nSummary: {summary}\nReport: {page}", flush=True
    )
    return run


def html(run: Run, records: Sequence[Record]) -> str:
    """A page that needs nothing from elsewhere."""
    # Its import takes a second, which every worker of a run would pay, and it tells of fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from loadtest.plots import pictures

    settings = RunSettings.from_json(run.settings)
    svgs = pictures(counted(records, settings.warmup_s), settings)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    wide = [tables.latency_table(run.total)]
    if len(run.by_workload) > 1:
        wide.append(tables.workload_table(run.by_workload))
    title, _, subtitle = tables.headline(run).partition(", ")
    return environment.get_template("report.html").render(
        run=run,
        title=title,
        subtitle=subtitle,
        wide_tables=wide,
        narrow_tables=[tables.count_table(run.total), tables.rate_table(run.total)],
        setting_tables=[
            tables.settings_table("Configuration", run.settings),
            tables.settings_table("Versions", run.versions),
        ],
        pictures={caption: _data_uri(svg) for caption, svg in svgs.items()},
    )


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.report", description="Table and report of a run from its records."
    )
    parser.add_argument("folder", type=Path, help="the run's folder, with requests-*.jsonl")
    folder = parser.parse_args().folder
    try:
        return 0 if write(folder).validity.valid else EXIT_INVALID
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
