"""What the pool knew when the server stopped is found by the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.target import serving

pytestmark = pytest.mark.e2e


def test_the_next_start_is_warm(tmp_path: Path) -> None:
    tiers = {"kv_tiers_disk_path": str(tmp_path / "kv"), "kv_tiers_disk_bytes": "64MiB"}
    prompt = [(7 * index) % 4000 + 3 for index in range(300)]
    texts = []
    for start in range(2):
        (folder := tmp_path / str(start)).mkdir()
        with serving(folder, "batched", **tiers) as target:
            texts.append(target.generate(prompt, max_tokens=20).text)
            hits = target.settled_metrics()
            found = hits.value("octavo_prefix_cache_hit_tokens_total", tier="disk")
            assert hits.value("octavo_kv_tier_up", tier="disk") == 1
            # All full blocks of 16, the last token aside.
            assert found == (288 if start else 0)
    assert texts[0] == texts[1]
