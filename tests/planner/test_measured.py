"""The planner beside what was measured: constants of a small model predict one six times as large.

The runs are those of docs/planning.md. What is held here is the arithmetic: runs on another day
differ by more than these bounds once neighbours use the machine.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import plan_check

RESULTS = Path(__file__).parents[2] / "bench" / "results"


@pytest.mark.parametrize("name", ["plan-check.json"])
def test_a_small_model_predicts_a_large_one(name: str) -> None:
    models, runs = plan_check.read(RESULTS / name)
    small, large = models
    assert large.loaded.step_weight_bytes > 5 * small.loaded.step_weight_bytes
    efficiency, rows = plan_check.judged(models, runs)
    assert efficiency.decode_compute_ratio < 1 and efficiency.prefill_compute_ratio < 1
    points = {(row["model"], row["batch"], row["prompt_tokens"]) for row in rows}
    assert points == {
        (model.name, batch, context)
        for model in models
        for batch in (1, 8, 32)
        for context in (128, 1024)
    }
    for row in rows:
        assert abs(row["tpot_off"]) < 0.2 and abs(row["usd_off"]) < 0.25, row
    fits = json.loads((RESULTS / name).read_text(encoding="utf-8"))["fits"]
    assert all(each["agrees"] for each in fits.values()) and len(fits) == 2
