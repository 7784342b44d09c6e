"""A Prometheus of its own, with the files that are shipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.cli.ports import Ports

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "monitoring" / "prometheus"

_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_DURATION = re.compile(r"(\[|\boffset |\bfor: |_interval: )(\d+)([smhdw])(\]|\b)")


def binary(name: str) -> str:
    """`prometheus` or `promtool`. Where there is none: a skip, but a failure in CI."""
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"{name} is not installed: apt-get install prometheus (Debian, Ubuntu)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Prometheus:
    http: httpx.Client

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series now. Raises AssertionError for what does not parse."""
        answer = self.get("query", query=expr)
        assert answer["resultType"] in ("vector", "scalar"), answer
        return [(each["metric"], float(each["value"][1])) for each in answer["result"]]

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.http.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def scraping(
    metrics_port: int, folder: Path, *, hurry: int | None = None, past: str = ""
) -> Iterator[Prometheus]:
    """Runs the shipped configuration; only the address of the server is another.

    hurry: durations in its files are shorter by that factor, and nothing else is
    past: samples in OpenMetrics' format that it has already
    """
    config, port = folder / "config", Ports.free().http
    shutil.copytree(SHIPPED, config)
    targets = config / "targets.yml"
    text = targets.read_text("utf-8")
    assert text.count("octavo:8002") == 1
    targets.write_text(text.replace("octavo:8002", f"127.0.0.1:{metrics_port}"), "utf-8")
    if hurry is not None:
        for file in ("prometheus.yml", "recording.yml", "alerts.yml"):
            text = (config / file).read_text("utf-8")
            (config / file).write_text(_hurried(text, hurry), "utf-8")
    if past:
        samples = folder / "past.txt"
        samples.write_text(f"{past}# EOF\n", "utf-8")
        backfill = [binary("promtool"), "tsdb", "create-blocks-from", "openmetrics"]
        subprocess.run([*backfill, samples, folder / "data"], check=True, capture_output=True)
    command = [
        binary("prometheus"),
        f"--config.file={config / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            _wait_until_ready(http, process, folder / "prometheus.log")
            yield Prometheus(http)
    finally:
        process.kill()
        process.wait()


def _hurried(text: str, factor: int) -> str:
    """Ranges, offsets, `for` and intervals; names of recorded series keep theirs."""

    def shorter(found: re.Match[str]) -> str:
        before, number, unit, after = found.groups()
        return f"{before}{int(number) * _UNIT_MS[unit] // factor}ms{after}"

    return _DURATION.sub(shorter, text)


def _wait_until_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < deadline_s, log.read_text("utf-8")
        try:
            if http.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
