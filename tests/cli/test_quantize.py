"""`octavo quantize` as its users run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from factories import greedy, make_engine, random_prompts, write_checkpoint
from octavo.cli import processes

OCTAVO = Path(sys.executable).with_name("octavo")
TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
GPTQ = ("--method=gptq", f"--calibration={TINY / 'heldout.jsonl'}", "--threads=1",
        "--calibration-tokens=2048", "--window=128")  # fmt: skip


def octavo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(OCTAVO), "quantize", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_a_folder_is_written_and_served(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", torch_dtype="bfloat16")
    done = octavo(folder, f"--out={tmp_path / 'out'}", "--group-size=32")
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert "rtn, 4 bits" in done.stderr and "3/3 shards" in done.stderr
    assert "is complete. Its quality has not been measured; serve it after" in done.stderr
    assert f"  octavo gate {folder} {tmp_path / 'out'} --text FILE\n" in done.stderr
    engine = make_engine(tmp_path / "out")
    assert str(engine.runner.weight_format) == "int4 in groups of 32"
    assert len(engine.generate(random_prompts([5]), greedy(3))[0].token_ids) == 3
    again = octavo(folder, f"--out={tmp_path / 'out'}", "--group-size=32")
    assert again.returncode == 1 and "nothing is overwritten" in again.stderr
    assert "Traceback" not in again.stderr


def test_eight_bits_have_a_scale_for_each_row(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy")
    assert octavo(folder, f"--out={tmp_path / 'out'}", "--format=int8").returncode == 0
    assert str(make_engine(tmp_path / "out").runner.weight_format) == "int8"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method=gptq"], "needs --calibration FILE"),
        (["--calibration=text.txt"], "reads no text; leave out --calibration FILE"),
        (["--format=int3"], "int3"),
        (["--group-size=48"], "48"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = octavo(TINY, f"--out={tmp_path / 'out'}", *arguments)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_loses_no_finished_layer(tmp_path: Path) -> None:
    command = [str(OCTAVO), "quantize", str(TINY), f"--out={tmp_path / 'out'}", *GPTQ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Tests that run in the background of a shell have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        shard = tmp_path / "out" / "model-00002-of-00008.safetensors"
        while not shard.exists():
            assert process.poll() is None
        (worker,) = processes.children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "the same command goes on behind the layers that are finished" in said
    assert not processes.is_alive(worker)
    done = octavo(TINY, f"--out={tmp_path / 'out'}", *GPTQ)
    assert done.returncode == 0 and "shards are there already" in done.stderr
    whole = octavo(TINY, f"--out={tmp_path / 'whole'}", *GPTQ)
    assert whole.returncode == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_help_teaches() -> None:
    done = octavo("--help")
    assert done.returncode == 0
    for part in ("compressed-tensors", "vLLM", "gptq", "goes on where it was interrupted", "Try:"):
        assert part in done.stdout
