"""bench/gpu.py itself, on a toy model and the CPU: it has to work the first time it meets a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/gpu.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_it_prints_a_table_and_writes_its_lines(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    done = script(
        "--quick", "--device", "cpu", "--out", str(out), "--models", str(tmp_path / "models"),
        "--only", "tokens,decode,throughput,attention,idle",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    versions, *lines = map(json.loads, out.read_text("utf-8").splitlines())
    assert versions["device"] == "cpu"
    checks = {line["check"]: line for line in lines}
    assert set(checks) == {"tokens", "decode", "throughput", "attention", "idle"}
    assert checks["attention"]["what"] == "needs a GPU"
    assert all(line["value"] > 0 for line in lines if line["check"] in ("decode", "throughput"))
    assert "fp32 outputs as the reference's" in done.stdout and "holds" in done.stdout


def test_an_unknown_check_is_named() -> None:
    done = script("--only", "decode,speed")
    assert done.returncode == 2 and "--only speed: the checks are tokens, attention" in done.stderr
