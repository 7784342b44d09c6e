"""`octavo doctor`: all checks in one table, and what can be mended at once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from octavo.cli import checks, shared_memory
from octavo.cli.checks import Check
from octavo.cli.ports import Ports

_COLOURS = {"ok": "green", "warn": "yellow", "fatal": "bold red"}


def examine(ports: Ports, host: str = "127.0.0.1") -> list[Check]:
    return [
        checks.check_python(),
        checks.check_packages(),
        checks.check_compiler(),
        checks.check_cpu(),
        checks.check_memory(),
        checks.check_gpu(),
        checks.check_glibc(),
        checks.check_shared_memory(),
        checks.check_stale_regions(stale_regions()),
        checks.check_ports(ports, host),
        checks.check_server(),
        checks.check_stub(),
        checks.check_disk(_hub_folder()),
    ]


def stale_regions() -> list[shared_memory.Region]:
    """Those of all Python-backend servers of this user, not of ours alone."""
    return shared_memory.stale_regions([shared_memory.own_prefix(), shared_memory.TRITON_PREFIX])


def has_fatal(results: Sequence[Check]) -> bool:
    return any(check.state == "fatal" for check in results)


def print_table(results: Sequence[Check], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "state", "detail", "fix"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "state"))
    for check in results:
        colour = _COLOURS[check.state]
        state = f"[{colour}]{check.state}[/]"
        table.add_row(check.name, state, escape(check.detail), escape(check.fix))
    console.print(table)


def as_json(results: Sequence[Check]) -> str:
    return json.dumps([asdict(check) for check in results], indent=2, ensure_ascii=False)


def _hub_folder() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def run(*, port: int, host: str, fix: bool, json_output: bool) -> int:
    """The exit code."""
    console = Console(highlight=False)
    if fix:
        regions = stale_regions()
        freed_bytes = shared_memory.clear(regions)
        Console(stderr=True).print(f"removed {len(regions)} stale regions, {freed_bytes} bytes")
    results = examine(Ports.starting_at(port), host)
    if json_output:
        print(as_json(results))
    else:
        print_table(results, console)
    return 1 if has_fatal(results) else 0
