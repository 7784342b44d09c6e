"""The table and the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import report
from loadtest.definitions import DEFINITION_VERSION, DEFINITIONS
from loadtest.records import Record, Recorder
from tests.loadtest.made_up_runs import failed, record, settings


def write_run(folder: Path, records: list[Record], **run: object) -> None:
    made = settings(**run)
    header = {
        "worker": 0,
        "workers": 1,
        "settings": made.as_json(),
        "versions": {"locust": "<2.47>"},
    }
    recorder = Recorder(folder, 0, header)
    for each in records:
        recorder.add(each)
    recorder.end({"cpu_ratio": 0.1, "ended_early": False})


def many() -> list[Record]:
    records = [record(i, intended_ms=i * 100, lag_ms=1, ttft_ms=100 + i) for i in range(40)]
    return [*records, failed("error", 40), record(41, status="cancelled", workload="rag")]


def test_the_table_has_numbers_and_definitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, many())
    report.write(tmp_path)
    text = capsys.readouterr().out
    # Median of 100 to 139 ms, from 40 values: flagged.
    assert re.search(r"TTFT +119\.50 +100\.00 +119\.50\* .* 40\n", text)
    assert "good of evaluated" in text and "40 of 41" in text
    for name, definition in DEFINITIONS.items():
        assert name in text and definition in text
    assert "The run is valid." in text
    assert text.rstrip().endswith(f"Report: {tmp_path}/report.html")


def test_the_summary_is_json_with_its_version(tmp_path: Path) -> None:
    write_run(tmp_path, many())
    report.write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert summary["definition_version"] == DEFINITION_VERSION
    assert summary["total"]["latencies"]["TTFT"]["p50"] == pytest.approx(0.1195)
    assert summary["total"]["counts"]["error"] == 1
    assert summary["settings"]["workload"]["name"] == "chat"


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path, many())
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?!data:image/svg)', page) == []
    assert "url(" not in page and "@import" not in page
    assert page.count("<figure>") == 4
    assert "&lt;2.47&gt;" in page
    for definition in DEFINITIONS.values():
        assert definition.replace("'", "&#39;") in page


def test_an_invalid_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, [record(0), failed("dropped", 1)])
    report.write(tmp_path)
    assert "INVALID: 1 arrivals met" in capsys.readouterr().out
    assert "INVALID run" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "records", [[], [failed("error")], [failed("cut_off"), record(gaps_ms=())]]
)
def test_runs_with_next_to_nothing_have_a_report_too(tmp_path: Path, records: list[Record]) -> None:
    write_run(tmp_path, records)
    report.write(tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_the_command_line_reports_again(tmp_path: Path) -> None:
    write_run(tmp_path, many())
    command = [sys.executable, "-m", "loadtest.report"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()
    missing = subprocess.run(
        [*command, str(tmp_path / "none")], capture_output=True, text=True, timeout=60
    )
    assert missing.returncode == 2
    assert "holds no requests" in missing.stderr
