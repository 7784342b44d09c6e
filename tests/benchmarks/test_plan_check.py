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
        (window,) = run.windows
        # Steps that only decode: the last 7 of alone, fewer of those that wait for each other.
        assert 20 < window.context_tokens < 28
        assert 0 < window.step_s < run.total_s and 0 < run.ttft_s < run.total_s
    again = script("--from", str(out))
    assert again.returncode == 0, again.stderr
    for line in again.stdout.splitlines():
        assert line in done.stdout


def test_steps_belong_to_the_readings_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe:
        readings = iter([Peaks(1e9, 1e12), Peaks(3e9, 1e12), Peaks(5e9, 3e12)])

        def measure(self) -> Peaks:
            return next(self.readings)

    monkeypatch.setattr(plan_check, "WINDOW_S", 1.0)
    clock = plan_check._Clock(Probe())  # type: ignore[arg-type]
    clock.add(0.7, None)  # a prompt
    clock.add(0.2, 10.0)
    clock.add(0.4, 12.0)
    clock.add(0.1, 14.0)
    clock.close_window()
    assert clock.total_s == pytest.approx(1.4)
    first, second = clock.windows
    assert (first.context_tokens, first.read_bytes_per_s) == (11.0, 2e9)
    assert first.step_s == pytest.approx(0.3)
    assert (second.context_tokens, second.read_bytes_per_s) == (14.0, 4e9)
    assert second.flops_per_s == 2e12


@pytest.mark.parametrize("arguments", [(), ("some-folder", "--from", "file")])
def test_models_or_a_file_are_needed(arguments: tuple[str, ...]) -> None:
    done = script(*arguments)
    assert done.returncode == 2 and "give folders of models, or --from a file" in done.stderr
