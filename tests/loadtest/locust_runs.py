"""Locust as users start it: a process of its own, as it changes the standard library of the one
it runs in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loadtest.records import Record, WorkerRecords, read
from loadtest.settings import RunSettings
from tests.loadtest.scripted_triton import Addresses

ROOT = Path(__file__).parents[2]
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"


@dataclass(frozen=True)
class LocustRun:
    """One that has ended."""

    code: int
    output: str
    folder: Path

    @cached_property
    def files(self) -> list[WorkerRecords]:
        return read(self.folder)

    @property
    def records(self) -> list[Record]:
        return [record for file in self.files for record in file.records]

    def with_status(self, status: str) -> list[Record]:
        return [record for record in self.records if record.status == status]

    @property
    def settings(self) -> RunSettings:
        return RunSettings.from_json(self.files[0].header["settings"])

    @cached_property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "summary.json").read_text("utf-8"))
        return loaded

    def latency(self, name: str) -> dict[str, float]:
        found: dict[str, float] = self.summary["total"]["latencies"][name]
        return found


class RunningLocust:
    """Locust with `options`; its records go to `folder`."""

    def __init__(self, target: Addresses, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
        command += ["--only-summary", "--host", target.http, "--grpc-address", target.grpc]
        self.process = subprocess.Popen(
            [*command, "--output", str(folder), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder.parent,  # not the checkout: the locustfile must find its package itself
        )

    def result(self) -> LocustRun:
        try:
            output, _ = self.process.communicate(timeout=90)
        finally:
            self.process.kill()
        return LocustRun(self.process.returncode, output, self.folder)


def run_locust(target: Addresses, folder: Path, *options: str) -> LocustRun:
    return RunningLocust(target, folder, *options).result()
