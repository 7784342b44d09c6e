"""`octavo gate` as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factories import write_checkpoint
from tests.quality.texts import TINY, copy_of_tiny, write_text

OCTAVO = Path(sys.executable).with_name("octavo")


def gate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(OCTAVO), "gate", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


def test_help_teaches() -> None:
    shown = gate("--help").stdout
    codes = "Exit codes: 0 pass, 1 fail, 2 inconclusive, 3 no signal"
    for part in ("--text", "--margin", "--context", "--kv", "--weights", "Try: octavo", codes):
        assert part in shown, part


def test_pass_is_0(text: Path, tmp_path: Path) -> None:
    done = gate(TINY, TINY, "--text", text, "--kv=int8", "--kv-skip-layers=0,3",
                "--out", tmp_path, "--threads=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("PASS: perplexity loss is at most") for line in lines) == 1
    assert f"evidence  {tmp_path / 'quality.json'}" in lines
    (report,) = tmp_path.glob("*.html")
    assert f"report    {report}" in lines
    (record,) = json.loads((tmp_path / "quality.json").read_text())["records"]
    assert record["candidate"]["form"]["kv_skip_layers"] == [0, 3]
    assert "ungated" not in done.stderr and "Traceback" not in done.stderr


def test_fail_is_1(text: Path, tmp_path: Path) -> None:
    """The evidence lies beside the candidate's weights."""
    folder = copy_of_tiny(tmp_path / "m", rope_theta=100_000.0)
    done = gate(TINY, folder, "--text", text, "--threads=1")
    assert done.returncode == 1 and "\nFAIL: " in done.stdout
    assert (folder / "quality.json").is_file()


def test_inconclusive_is_2(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl", 4, 50)
    done = gate(TINY, TINY, "--text", text, "--out", tmp_path, "--threads=1")
    assert done.returncode == 2 and "\nINCONCLUSIVE: needs about 36 more documents" in done.stdout


def test_no_signal_is_3(text: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "random", vocab_size=4096)
    (folder / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    done = gate(folder, folder, "--text", text, "--threads=1")
    assert done.returncode == 3 and "\nNO SIGNAL: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        ([TINY, TINY], "Missing option"),
        ([TINY, TINY, "--text=x.txt", "--margin=lots"], "--margin"),
        ([TINY, TINY, "--text=x.txt", "--kv=int3"], "int3"),
        ([TINY, TINY, "--text=x.txt", "--kv-skip-layers=first"], "first"),
        ([TINY, "./nowhere", "--text=x.txt"], "nowhere: no such folder"),
        ([TINY, TINY, "--text=x.txt"], "x.txt: No such file"),
    ],
)
def test_what_cannot_be_measured_is_4(arguments: list[object], said: str, tmp_path: Path) -> None:
    """Not 2, which is a verdict."""
    own = [*arguments, "--out", tmp_path] if len(arguments) > 2 else arguments
    done = gate(*own)
    assert done.returncode == 4 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
