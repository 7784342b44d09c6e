"""`octavo playbook` as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factories import write_checkpoint

OCTAVO = Path(sys.executable).with_name("octavo")
ENVIRONMENT = {**os.environ, "COLUMNS": "100"}
SMALL = ("--quick", "--context=96", "--users=2", "--threads=1", "--device=cpu")


def playbook(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(OCTAVO), "playbook", *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "toy-model", **sizes)


def test_help_teaches() -> None:
    shown = playbook("--help").stdout
    for part in ("--workload", "--price-per-hour", "--slo-ttft-s", "--quick", "Try: octavo",
                 "Exit codes: 0 measured", "0b contiguous"):  # fmt: skip
        assert part in " ".join(shown.split()), part


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--price-per-hour=-1"], "--price-per-hour = -1: should be a number above 0"),
        (["--price-per-hour=nan"], "--price-per-hour = nan"),
        (["--slo-ttft-s=0"], "--slo-ttft-s = 0: should be a number above 0"),
        (["--slo-tpot-s=inf"], "--slo-tpot-s = inf"),
        (["--margin=0.5"], "--margin = 0.5: above 0, at most 0.02"),
        (["--rounds=0"], "--rounds = 0: should be 1 to 100"),
        (["--users=0"], "--users = 0: should be 1 to 1024"),
        (["--kv-memory=lots"], "--kv-memory = lots"),
        (["--text=/no/such/file.txt"], "/no/such/file.txt: No such file"),
        (["--calibration=notes.doc"], "notes.doc: a text is .txt or .jsonl"),
    ],
)
def test_bad_input_is_2_before_anything_is_loaded(
    folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = playbook(folder, "--out", tmp_path / "out", *options)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("octavo: ") and said in done.stderr
    assert not (tmp_path / "out" / "measured.jsonl").exists()


@pytest.mark.parametrize("arguments", [(), ("/no/such/model",), (".", "--workload=prose")])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = playbook(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--context=9999"], "--context = 9999: should be 2 to the model's 256 tokens"),
        (["--context=3"], "--context = 3: the shortest requests"),
        (["--kv-memory=1KiB"], "--kv-memory = 1024 bytes: at least"),
        (["--device=cuda:99"], "device = 'cuda:99'"),
    ],
)
def test_what_the_checkpoint_refuses_is_2(
    folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = playbook(folder, "--out", tmp_path, *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_and_gone_on_with(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C after the first loads; the same command ends with the rest, and a third one measures
    nothing."""
    arguments = [str(OCTAVO), "playbook", str(folder), "--out", str(tmp_path), *SMALL]
    kept = tmp_path / "measured.jsonl"
    running = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts a job in the background leaves it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline_s = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline_s:
        if kept.exists() and '"sample-' in kept.read_text(encoding="utf-8"):
            running.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "the same command goes on" in said
    before = kept.read_bytes()
    assert before.count(b'"sample-') < 7

    done = playbook(folder, "--out", tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr
    assert kept.read_bytes().startswith(before) and "there already" in done.stderr
    _check(done.stdout, tmp_path)

    whole = kept.read_bytes()
    again = playbook(folder, "--out", tmp_path, *SMALL, "--price-per-hour=2")
    assert again.returncode == 0 and kept.read_bytes() == whole
    assert "At $2 per hour" in again.stdout and "$" in (tmp_path / "playbook.md").read_text()


def _check(shown: str, out: Path) -> None:
    """Of a model that reads nothing, without a text."""
    whole = json.loads((out / "playbook.json").read_text(encoding="utf-8"))
    keys = [stage["stage"]["key"] for stage in whole["stages"]]
    assert keys == ["generate", "contiguous", "paged", "continuous", "prefix", "kv-int8",
                    "weights-int4"]  # fmt: skip
    assert all(stage["figures"] is not None for stage in whole["stages"])
    assert [stage["is_proven"] for stage in whole["stages"]] == [True] * 5 + [False] * 2
    judged = [stage["quality"]["judged"] for stage in whole["stages"][5:]]
    assert judged == ["not judged"] * 2
    assert whole["verdict"] in " ".join(shown.split())
    assert "No price was given" in shown and "0b contiguous" in shown
    assert (out / "playbook.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_an_slo_that_nobody_meets_is_2(folder: Path, tmp_path: Path) -> None:
    done = playbook(folder, "--out", tmp_path, *SMALL, "--slo-ttft-s=1e-9")
    assert done.returncode == 2 and "no request of any stage met the SLO" in done.stderr
