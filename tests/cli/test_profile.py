"""`octavo profile` as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from factories import write_checkpoint
from octavo.cli import processes

OCTAVO = str(Path(sys.executable).with_name("octavo"))
WIDE = {**os.environ, "COLUMNS": "999"}
SMALL = ("--batch=2", "--context=40", "--prompt=30", "--steps=8", "--prefills=3", "--threads=1",
         "--device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "toy-model")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [OCTAVO, "profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=WIDE)


def test_tables_and_files(folder: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"p.{name}" for name in ("json", "html", "png")}
    trace = tmp_path / "trace.json"
    done = run(
        str(folder), *SMALL, f"--json={files['json']}", f"--html={files['html']}",
        f"--plot={files['png']}", f"--trace={trace}", "--weight-format=int8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy-model: weights int8")
    assert "peaks, measured in this run: read " in done.stdout
    result = json.loads(files["json"].read_text(encoding="utf-8"))
    for name in ("prefill", "decode"):
        assert f"\n{name}: 2 " in done.stdout
        assert result["phases"][name]["bytes"] > 0
    for row in ("qkv", "attend", "lm_head", "barriers", "schedule", "hand out", "step"):
        own = [line for line in done.stdout.splitlines() if line.startswith(f"{row} ")]
        assert len(own) == 2, row
    assert "MBU: bytes of the step" in done.stdout
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "toy-model" in files["html"].read_text(encoding="utf-8")
    names = [
        event["name"]
        for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        if event.get("cat") == "octavo" and event["name"].startswith("step ")
    ]
    assert names[0] == "step 1: prefill[2, 60]"
    assert names[1:] == [f"step {number}: decode[2]" for number in range(2, 10)]
    assert done.stderr.count("octavo: wrote ") == 4 and "USDT" not in done.stderr


def test_json_on_stdout_is_alone_there(folder: Path) -> None:
    done = run(str(folder), *SMALL, "--json=-", "--set=kernels=reference")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kernels"] == "reference" and result["notes"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--batch=0"], ["--batch = 0", "1 to 4096"]),
        (["--prompt=9999"], ["--prompt = 9999", "at most 255"]),
        (["--context=9999"], ["--context = 9999", "256"]),
        (["--weight-format=int3"], ["weight_format = 'int3'"]),
        (["--set=nothing"], ["--set nothing", "field=value"]),
        (["--html=/nowhere/a.html"], ["--html = /nowhere/a.html", "no folder"]),
        (["--trace=/nowhere/a.json"], ["--trace = /nowhere/a.json", "no folder"]),
        (["--plot=a.gif"], ["--plot = a.gif", ".png"]),
        (["--device=tpu"], ["device = 'tpu'"]),
    ],
)
def test_bad_input_is_exit_code_2(folder: Path, options: list[str], parts: list[str]) -> None:
    # The later of two values counts.
    done = run(str(folder), *SMALL, *options)
    assert done.returncode == 2 and not done.stdout, done
    assert done.stderr.startswith("octavo: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_a_model_that_is_none_is_exit_code_2() -> None:
    done = run("/nowhere")
    assert done.returncode == 2 and "/nowhere: no such folder" in done.stderr


def test_ctrl_c(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    with subprocess.Popen(
        [OCTAVO, "profile", str(folder), *SMALL, "--prefills=90000", f"--json={file}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=WIDE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "measuring prefill" not in process.stderr.readline():
            assert process.poll() is None
        workers = processes.children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        shown, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "stopped; nothing was written" in said
    assert not shown and not file.exists()
    assert not any(processes.is_alive(each) for each in workers)


def test_help_teaches() -> None:
    said = run("--help").stdout
    assert "octavo profile models/octavo-tiny" in said and "nsys profile --trace=cuda,nvtx" in said
