"""Findings of seven stages whose good tokens per second are what a test says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.planner.roofline import Peaks
from octavo.playbook.facts import Identical, IdenticalSide, Machine, Quality
from octavo.playbook.findings import Findings, find
from octavo.playbook.options import Options, Settled
from octavo.playbook.stages import Judged
from tests.playbook.samples import sample

SETTLED = Settled(
    model="/models/toy", digest="0" * 64, dtype="bfloat16", device="cpu", num_threads=2,
    workload="chat", seed=0, vocab_size=4096, most_users=32, context_tokens=1280,
    kv_memory_bytes=36_700_160, kv_token_bytes=3584, kv_layer_token_bytes=512, num_layers=7,
    weight_bytes=12_000_000, page_tokens=32, engine_page_tokens=32, group_size=64,
)  # fmt: skip
MACHINE = Machine(
    "avx512",
    Identical(8, 512, 16, IdenticalSide(4096, 1000, 1.0), IdenticalSide(624, 250, 0.5)),
    Peaks(20e9, 400e9),
)
RATES = {
    "generate": 1, "contiguous": 2, "paged": 4, "continuous": 8, "prefix": 10, "kv-int8": 16,
    "weights-int4": 20,
}  # fmt: skip


def quality(judged: Judged = "pass") -> Quality:
    return Quality(
        judged=judged, reason="as told", margin=0.01, loss=0.002, loss_lower=-0.001,
        loss_upper=0.004, top1_ratio=0.98, documents=40, text="held<out>.jsonl",
        evidence="quality/kv-int8/report.html",
    )  # fmt: skip


def findings(
    rates: Mapping[str, int] = RATES,
    kv: Judged = "pass",
    weights: Judged = "pass",
    skipped: Mapping[str, str] | None = None,
    **options: Any,
) -> Findings:
    """rates: those that are not there were not measured. 0: requests came too late."""
    samples = [
        sample(stage=stage, good=rate, bad=0 if rate else 5) for stage, rate in rates.items()
    ]
    return find(
        Options(model="/models/toy", out="", **options),
        SETTLED,
        MACHINE,
        samples,
        {"kv-int8": quality(kv), "weights-int4": quality(weights)},
        skipped or {},
    )
