"""Results of `octavo bench` on stdout and in files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from octavo.cli.bench_options import check_file

STDOUT = Path("-")
_FILE_COLUMNS = 160


def table_console() -> Console:
    """Of stdout. Where it is no terminal no table is cut to fit one."""
    width = None if sys.stdout.isatty() else _FILE_COLUMNS
    return Console(highlight=False, markup=False, width=width)


@contextmanager
def json_lines(file: Path | None) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Takes lines, and writes each at once: what was measured is kept whatever comes after. What
    a file holds already stays. Raises ConfigError."""
    if file is None:
        yield lambda line: None
    elif file == STDOUT:
        yield lambda line: print(json.dumps(line), flush=True)
    else:
        check_file("--json", file)
        with file.open("a", encoding="utf-8") as stream:
            yield lambda line: print(json.dumps(line), file=stream, flush=True)
