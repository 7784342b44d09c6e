"""From numbers to a word, a reason and an exit code."""

from dataclasses import replace

import pytest

from octavo.quality.statistics import Bounds
from octavo.quality.verdict import Numbers, Outcome, damage_found, figures, judge

GOOD = Numbers(
    documents=100, tokens=50_000, vocab_size=4096, baseline_perplexity=24.0,
    candidate_perplexity=24.1, loss=Bounds(0.004, 0.002, 0.006), mean_kl_nats=0.01, top1_ratio=0.95,
)  # fmt: skip


def test_exit_codes() -> None:
    assert [outcome.exit_code for outcome in Outcome] == [0, 1, 2, 3]
    names = ["pass", "fail", "inconclusive", "no signal"]
    assert [outcome.value for outcome in Outcome] == names


def test_pass() -> None:
    verdict = judge(GOOD, 0.01)
    assert verdict.outcome is Outcome.PASS
    assert verdict.line == (
        "PASS: perplexity loss is at most +0.600%, within the margin of 1 % (95 % one-sided)"
    )
    assert judge(GOOD, 0.006).outcome is Outcome.PASS  # at the margin is within it


def test_fail_and_inconclusive() -> None:
    assert judge(GOOD, 0.001).outcome is Outcome.FAIL
    verdict = judge(GOOD, 0.005)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.more_documents == 300 and "needs about 300 more documents" in verdict.line


@pytest.mark.parametrize("margin", [0.01, 0.001])
def test_below_20_documents_nothing_is_said(margin: float) -> None:
    verdict = judge(replace(GOOD, documents=19), margin)
    assert verdict.outcome is Outcome.INCONCLUSIVE and verdict.more_documents == 1
    few = judge(replace(GOOD, tokens=1999), margin)
    assert few.outcome is Outcome.INCONCLUSIVE and few.more_documents == 1


def test_one_document() -> None:
    verdict = judge(replace(GOOD, documents=1, tokens=50), 0.01)
    assert verdict.outcome is Outcome.INCONCLUSIVE and verdict.more_documents == 39


def test_a_loss_at_the_margin_needs_more_than_there_is() -> None:
    verdict = judge(replace(GOOD, loss=Bounds(0.01, 0.009, 0.011)), 0.01)
    assert verdict.outcome is Outcome.INCONCLUSIVE and verdict.more_documents is None
    assert "too close to the margin" in verdict.line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean_kl_nats": 0.051}, "mean KL divergence 0.051 nats, limit 0.05"),
        ({"top1_ratio": 0.84}, "top-1 agreement 84.0%, limit 85%"),
        ({"tokens_not_finite": 2}, "2 tokens have logits that are no numbers"),
    ],
)
def test_damage_fails_whatever_the_perplexity(change: dict[str, float], said: str) -> None:
    damaged = replace(GOOD, **change)  # type: ignore[arg-type]
    assert damage_found(GOOD) == () and damage_found(damaged) == (said,)
    verdict = judge(damaged, 0.01)
    assert verdict.outcome is Outcome.FAIL and said in verdict.line


def test_no_signal_goes_before_everything() -> None:
    for numbers in (GOOD, replace(GOOD, documents=1), replace(GOOD, top1_ratio=0.1)):
        assert judge(replace(numbers, baseline_perplexity=1024.0), 0.01).outcome is not (
            Outcome.NO_SIGNAL
        )
        verdict = judge(replace(numbers, baseline_perplexity=1024.1), 0.01)
        assert verdict.outcome is Outcome.NO_SIGNAL


def test_figures_stand_beside_their_limits() -> None:
    shown = {name.strip(): (value, limit) for name, value, limit in figures(GOOD, 0.015)}
    assert shown["upper bound, 95 %"] == ("+0.600%", "at most 1.5 % passes")
    assert shown["baseline's perplexity"] == ("24.0000", "≤ 1,024")
    one = replace(GOOD, loss=Bounds(0.0, -1.0, 1e9))
    assert dict(row[:2] for row in figures(one, 0.01))["  upper bound, 95 %"] == "unknown"
