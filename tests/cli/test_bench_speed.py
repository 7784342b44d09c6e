"""`octavo bench engine`, `kernels` and `compare` as their users run them."""

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "toy-model")


def engine(folder: Path, *options: str) -> list[str]:
    return [OCTAVO, "bench", "engine", f"--model={folder}", "--threads=1", *options]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=WIDE)


def refused(command: list[str]) -> str:
    done = run(command)
    assert done.returncode == 1 and not done.stdout, done
    assert done.stderr.startswith("octavo: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_engine_table_lines_and_comparison(folder: Path, tmp_path: Path) -> None:
    file, picture = tmp_path / "ours.jsonl", tmp_path / "compare.png"
    file.write_text('{"peer": "other", "model": "toy-model-f32", "workload": "p9-g4-c2", '
                    '"decode_tps": 1e-3, "ttft_s": 1e9}\n', encoding="utf-8")  # fmt: skip
    options = ("--workloads", "p9-g4-c2,p400-g4-c1", "--workloads=p9-g4-c1", "--runs=1")
    done = run(engine(folder, *options, f"--json={file}", "--label=mine", "--kv-memory=1MiB"))
    assert done.returncode == 1, done.stderr  # as one workload has failed
    assert done.stdout.startswith("toy-model: weights float32 ")
    assert "\np9-g4-c2 " in done.stdout and "\np9-g4-c1 " in done.stdout
    assert "p400-g4-c1: InvalidRequestError: prompt: got 400 tokens" in done.stdout
    assert "roofline_ratio: decode_tps / roofline_tps." in done.stdout
    assert "octavo: 1 of 3: p9-g4-c2: " in done.stderr
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    assert [line["workload"] for line in lines[1:]] == ["p9-g4-c2", "p400-g4-c1", "p9-g4-c1"]
    assert lines[1]["label"] == "mine" and lines[1]["kv_cache_bytes"] == 2**20

    shown = run([OCTAVO, "bench", "compare", str(file), f"--plot={picture}"])
    assert shown.returncode == 0, shown.stderr
    (row,) = [line for line in shown.stdout.splitlines() if line.startswith("p9-g4-c2 ")]
    cells = row.split()
    assert cells[1] == "32" and cells[2] == f"{lines[1]['decode_tps']:,.1f}"
    assert cells[3].startswith("×") and "other 0.0" in row
    assert cells[-1] == f"{100 * lines[1]['roofline_ratio']:.0f}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_engine_lines_on_stdout_are_alone_there(folder: Path) -> None:
    done = run(engine(folder, "--workloads=p9-g4-c2", "--runs=1", "--json=-"))
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["workload"] == "p9-g4-c2" and line["decode_tps"] > 0


def test_ctrl_c_keeps_what_was_measured(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "ours.jsonl"
    with subprocess.Popen(
        engine(folder, "--workloads=p9-g4-c1,p9-g200-c32", "--runs=1000", f"--json={file}",
               "--max-seconds=0.001", *["--workloads=p9-g200-c32"] * 500),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=WIDE,
        # Tests that run in the background of a shell have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert "octavo: 1 of 502: p9-g4-c1" in process.stderr.readline()
        (worker,) = processes.children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        shown, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and " of 502 workloads" in said
    assert "\np9-g4-c1 " in shown
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0])["workload"] == "p9-g4-c1"
    assert not processes.is_alive(worker)


def test_engine_errors_name_option_value_and_limit(folder: Path, tmp_path: Path) -> None:
    small = ("--workloads=p9-g4-c1", "--runs=1")
    assert "--workloads = p9: should be of the form" in refused(engine(folder, "--workloads=p9"))
    assert "kv_cache_bytes = 'lots': should be a number" in refused(
        engine(folder, *small, "--kv-memory=lots")
    )
    assert "max_num_batched_tokens = 3 should be at least max_num_seqs = 32" in refused(
        engine(folder, *small, "--max-batched-tokens=3")
    )
    assert "weight_format = 'int3': should be 'auto', 'int8'" in refused(
        engine(folder, *small, "--weight-format=int3")
    )
    assert "weight_group_size = 32: weight_format = 'int8' has no groups" in refused(
        engine(folder, *small, "--weight-format=int8", "--group-size=32")
    )
    assert "--set nothing: not of the form field=value" in refused(
        engine(folder, *small, "--set=nothing")
    )
    assert f"no folder {tmp_path}/none" in refused(
        engine(folder, *small, f"--json={tmp_path}/none/a.jsonl")
    )
    assert "/nowhere: no such folder" in refused([OCTAVO, "bench", "engine", "--model=/nowhere"])


def test_kernels_table_and_lines(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kernels.jsonl"
    done = run([OCTAVO, "bench", "kernels", f"--model={folder}", "--ops=silu_mul", "--threads=1",
                "--kernels=reference", "--dtype=float32", f"--json={file}"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    assert [line["shape"] for line in lines] == ["1x160", "8x160", "32x160", "256x160"]
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("silu_mul")]
    assert [row[2] for row in rows] == [line["shape"] for line in lines]
    assert done.stderr.count("octavo: silu_mul float32 ") == 4


def test_kernels_errors_name_option_value_and_limit() -> None:
    kernels = [OCTAVO, "bench", "kernels"]
    assert "--ops = conv: should be of linear" in refused([*kernels, "--ops=linear,conv"])
    assert "/nowhere: no such folder" in refused([*kernels, "--model=/nowhere"])


def test_compare_errors_name_file_and_option(tmp_path: Path) -> None:
    compare, file = [OCTAVO, "bench", "compare"], tmp_path / "a.jsonl"
    assert "none.jsonl: " in refused([*compare, str(tmp_path / "none.jsonl")])
    file.write_text("nothing\n", encoding="utf-8")
    assert "a.jsonl, line 1: " in refused([*compare, str(file)])
    file.write_text('{"peer": "a", "model": "m", "workload": "w"}\n', encoding="utf-8")
    assert "--model = 'x': no line without an error" in refused([*compare, str(file), "--model=x"])
    assert "--plot = a.gif: should end in .png" in refused([*compare, str(file), "--plot=a.gif"])


def test_help_has_the_rules() -> None:
    done = run([OCTAVO, "bench", "compare", "--help"])
    assert "Of wXaY it is X" in done.stdout and "theirs / ours of times" in done.stdout
