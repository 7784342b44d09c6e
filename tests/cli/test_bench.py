"""`octavo bench identical` as its users run it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from factories import write_checkpoint
from octavo.benchmarks.identical import IMPOSSIBLE
from octavo.cli import processes

OCTAVO = Path(sys.executable).with_name("octavo")
SMALL = ("--requests=3", "--prompt-tokens=41", "--output-tokens=4", "--block-size=4", "--threads=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "toy-model")


def command(folder: Path, *options: str) -> list[str]:
    return [str(OCTAVO), "bench", "identical", f"--model={folder}", *SMALL, *options]


def refused(folder: Path, *options: str) -> str:
    done = subprocess.run(
        command(folder, *options),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "999"},
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("octavo: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_table_json_and_picture(folder: Path, tmp_path: Path) -> None:
    files = (tmp_path / "identical.json", tmp_path / "identical.png")
    done = subprocess.run(
        command(folder, "--rounds=1", f"--json={files[0]}", f"--plot={files[1]}"),
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy-model (float32), 41 + 4 tokens, context 256, blocks of 4")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "computed tokens 1 41 41 41 1" in lines and "hit tokens 1 0 0 0 40" in lines
    (hits_of_three,) = [line for line in lines if line.startswith("3 0 0 ")]
    assert hits_of_three.endswith(" 120")
    assert IMPOSSIBLE[:40] in done.stdout and "TTFT: submitted" in done.stdout
    assert done.stderr.count("octavo: round 1 of 1: ") == 8
    whole = json.loads(files[0].read_text(encoding="utf-8"))
    assert whole["complete"] and whole["settings"]["model"] == "toy-model"
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_shows_what_was_measured(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "identical.json"
    with subprocess.Popen(
        command(folder, "--rounds=10000", f"--json={file}"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Tests that run in the background of a shell have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "round 2 of" in line:
                break
        (worker,) = processes.children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        shown, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "octavo: stopped in round " in said
    assert "TTFT p50, ms" in shown
    whole = json.loads(file.read_text(encoding="utf-8"))
    assert not whole["complete"] and len(whole["rounds"]) >= 9
    assert not processes.is_alive(worker)


def test_the_measuring_process_does_not_outlive_a_killed_command(folder: Path) -> None:
    with subprocess.Popen(
        command(folder, "--rounds=10000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("round 1 of" in line for line in process.stderr)  # what the engine warns of too
        (worker,) = processes.children(process.pid)
        ended = os.pidfd_open(worker)
        process.kill()
        assert select.select([ended], [], [], 60)[0] == [ended]
        os.close(ended)


def test_errors_name_option_value_and_limit(folder: Path, tmp_path: Path) -> None:
    assert "--prompt-tokens + --output-tokens = 253 + 4: the context is 256 tokens" in refused(
        folder, "--prompt-tokens=253"
    )
    assert "--kv-memory = lots: should be a number of bytes" in refused(folder, "--kv-memory=lots")
    assert "--kv-memory = 1000 bytes: at least 131072" in refused(folder, "--kv-memory=1kB")
    assert "--plot = a.gif: should end in .png" in refused(folder, "--plot=a.gif")
    assert f"no folder {tmp_path}/none" in refused(folder, f"--json={tmp_path}/none/a.json")
    assert "/nowhere: no such folder" in refused(folder, "--model=/nowhere")


def test_a_missing_matplotlib_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['matplotlib'] = None\n", encoding="utf-8"
    )
    done = subprocess.run(
        command(folder, "--plot=a.png"), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "matplotlib is not installed" in done.stderr and "octavo[plot]" in done.stderr
