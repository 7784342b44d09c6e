"""The article's claims beside numbers that are known."""

import pytest

from octavo.playbook.claims import claims
from octavo.playbook.findings import find
from tests.playbook.findings import RATES, findings
from tests.playbook.samples import sample, times


def test_the_arithmetic_that_needs_no_measurement() -> None:
    page, bandwidth, long_context, identical, *_ = claims(findings())
    assert "16 KB are 32 tokens of one layer" in page.here
    assert "20.0 GB/s read by 2 threads" in bandwidth.here and "1/45 of that" in bandwidth.here
    # 32,768 tokens × 80 layers × 2 × 128 × 2 bytes × 8 or 64 heads.
    assert "10.7 GB with the grouped queries" in long_context.here
    assert "85.9 GB without" in long_context.here and "0.12 GB of this model" in long_context.here
    assert long_context.holds == "differs"
    assert "85% less prefill (4,096 → 624 tokens) and 75% less KV memory" in identical.here
    assert identical.holds == "holds"


@pytest.mark.parametrize(("kv", "held"), [(16, "holds"), (2, "differs")])
def test_cost_is_judged_by_what_is_proven(kv: int, held: str) -> None:
    cost = claims(findings({**RATES, "kv-int8": kv}, weights="fail"))[-1]
    assert cost.here.startswith("80% lower for a million good tokens without quantization")
    assert cost.holds == held


def test_shares_of_the_peaks() -> None:
    shares = claims(findings())[5]
    # 4e6 FLOPs and 1e6 bytes in a millisecond; peaks of 400e9 and 20e9.
    assert "1% of the measured compute peak, 5% of the measured bandwidth" in shares.here
    assert shares.holds == "differs"


def test_latency_is_compared_with_the_same_users() -> None:
    found = findings()
    slow = sample(stage="contiguous", requests=(times(ttft_s=1.0),), users=4)
    fast = sample(stage="prefix", requests=(times(ttft_s=0.1),), users=8)
    others = [each for each in found.samples if each.stage not in ("contiguous", "prefix")]
    own = find(found.options, found.settled, found.machine, [*others, slow, fast], {}, {})
    assert claims(own)[4].holds == "not measured" and "no load of 4 users" in claims(own)[4].here
    level = sample(stage="prefix", requests=(times(ttft_s=0.4),), users=4, good=1)
    own = find(found.options, found.settled, found.machine, [*others, slow, fast, level], {}, {})
    # 1.1 s and 0.5 s with the ten tokens behind the first.
    assert "1.10 → 0.50 s, 55% lower, with 4 users" in claims(own)[4].here
    assert claims(own)[4].holds == "holds"


def test_what_was_not_measured_is_not_claimed() -> None:
    few = findings({"contiguous": 2})
    assert [each.holds for each in claims(few)[4:]] == ["not measured", "differs", "not measured"]
