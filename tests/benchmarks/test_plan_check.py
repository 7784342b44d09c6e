"""bench/plan_check.py itself, on a toy model: how well it predicts is no matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import plan_check
from octavo.planner.roofline import Peaks

ROOT = Path(__file__).parents[2]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/plan_check.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_what_it_wrote_is_judged_the_same_again(toy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "constants.json"
    done = script(
        str(toy_folder), "--batches", "1", "3", "--contexts", "20", "--output", "8",
        "--rounds", "2", "--fit-blocks", "35", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    points = [(row["batch"], row["prompt_tokens"]) for row in document["points"]]
    assert points == [(1, 20), (3, 20)]
    assert document["fits"][toy_folder.name] == {"requests": 3, "agrees": True}
    _, runs = plan_check.read(out)
    assert [run.batch for run in runs] == [1, 3, 1, 3]
    for run in runs:
        assert 0 < run.ttft_s < run.total_s
        for window in run.windows:  # none on a machine whose speed changes
            assert 20 < window.context_tokens < 28 and 0 < window.step_s < run.total_s
    again = script("--from", str(out))
    assert again.returncode == 0, again.stderr
    for line in again.stdout.splitlines():
        assert line in done.stdout


class Probe:
    """Memory at these GB/s, one after the other; matrices at 1 TFLOP/s more each time."""

    def __init__(self, *gb_per_s: float) -> None:
        self._peaks = iter(Peaks(speed * 1e9, n * 1e12) for n, speed in enumerate(gb_per_s))

    def measure(self) -> Peaks:
        return next(self._peaks)


def clock(*gb_per_s: float) -> plan_check._Clock:
    return plan_check._Clock(Probe(*gb_per_s))  # type: ignore[arg-type]


def test_steps_belong_to_the_readings_around_them() -> None:
    own = clock(10, 11, 12, 12.5)
    own.add(0.7, None)  # a prompt
    own.add(0.6, 10.0)  # the reading before the prompt says little of it
    own.add(9.0, 10.5)  # beside the reader's threads: counts as the next one does
    own.add(0.2, 11.0)
    own.add(0.4, 12.0)
    own.add(0.5, 13.0)
    own.add(9.0, 13.5)
    own.add(0.1, 14.0)
    own.close_window()
    assert own.total_s == pytest.approx(2.8)
    first, second = own.windows
    assert (first.context_tokens, first.step_s) == (12.0, 0.4)
    assert (first.read_bytes_per_s, first.flops_per_s) == (11.5e9, 1.5e12)
    assert (second.context_tokens, second.step_s) == (14.0, 0.1)
    assert (second.read_bytes_per_s, second.flops_per_s) == (12.25e9, 2.5e12)


def test_steps_on_a_machine_that_changed_do_not_count() -> None:
    own = clock(30, 58, 57)
    own.add(1.1, 10.0)
    assert own.windows == []
    own.add(0.2, 11.0)
    own.add(1.2, 11.0)
    assert [window.step_s for window in own.windows] == [1.2]


@pytest.mark.parametrize("arguments", [(), ("some-folder", "--from", "file")])
def test_models_or_a_file_are_needed(arguments: tuple[str, ...]) -> None:
    done = script(*arguments)
    assert done.returncode == 2 and "give folders of models, or --from a file" in done.stderr


@pytest.mark.parametrize("arguments", [("no-such-folder",), ("--from", "no-such-file.json")])
def test_what_is_not_there_is_named(arguments: tuple[str, ...]) -> None:
    done = script(*arguments)
    assert done.returncode == 2 and arguments[-1] in done.stderr
    assert "Traceback" not in done.stderr
