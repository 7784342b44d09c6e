"""The planner beside what was measured: constants of a small model predict one six times as large.

The lines are those of docs/benchmarks.md, of two cores of a machine that others used too: between
runs its memory read at 24 to 60 GB/s. So bounds are wide, and hold for medians.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import plan_check
from octavo.models.known import find_config
from octavo.models.sizes import model_sizes
from octavo.planner.model import ModelSizes

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def lines(model: str, weight_format: str) -> list[dict[str, Any]]:
    text = (RESULTS / f"cpu-{model}.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [
        line
        for line in found
        if line["peer"] == "octavo"
        and line["weight_format"] == weight_format
        and line["workload"].startswith("p")
        and not line["workload"].startswith("primed")
    ]


@pytest.mark.parametrize("weight_format", ["bfloat16", "w8a8", "w4a8"])
def test_a_small_model_predicts_a_large_one(
    weight_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(folder: Path, dtype: str = "auto") -> ModelSizes:
        return model_sizes(find_config(folder.name)[1], folder.name, dtype)

    monkeypatch.setattr(plan_check, "sizes", known)
    small = plan_check.points(Path("bench-150m"), lines("bench-150m", weight_format))
    large = plan_check.points(Path("bench-1b"), lines("bench-1b", weight_format))
    assert len(small) >= 7 and len(large) >= 3
    efficiency = plan_check.fitted(small)
    assert efficiency.decode_compute_ratio < 1 and efficiency.prefill_compute_ratio < 1
    for own in (small, large):
        rows = [plan_check.compared(each, efficiency) for each in own]
        for name in ("tpot_off", "usd_off"):
            off = [abs(row[name]) for row in rows]
            assert median(off) < 0.2 and max(off) < 0.5, (name, off)
