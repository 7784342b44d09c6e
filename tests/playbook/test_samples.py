"""Figures by numbers that are counted by hand."""

import json
from dataclasses import asdict

import pytest

from octavo.config import SLO
from octavo.playbook.samples import Sample, best_users, figures, is_past_best, quantile
from tests.playbook.samples import sample, times

SLO_2S = SLO(ttft_s=2.0, tpot_s=0.1)


@pytest.mark.parametrize(
    ("request_times", "is_good"),
    [
        (times(2.0, 0.1), True),
        (times(2.001, 0.1), False),
        (times(2.0, 0.11), False),
        (times(0.1, 0.0, tokens=1), True),
    ],
)
def test_a_good_request_meets_both(request_times: object, is_good: bool) -> None:
    assert request_times.is_good(SLO_2S) is is_good  # type: ignore[attr-defined]


def test_tokens_of_late_requests_are_not_good() -> None:
    own = sample(good=3, bad=1)
    assert own.tokens_per_s == 4 and own.good_tokens_per_s(SLO_2S) == 3
    assert own.good_ratio(SLO_2S) == 0.75
    assert own.goodput_rps(SLO_2S) == pytest.approx(3 / 11)


def test_what_comes_behind_the_window_does_not_count() -> None:
    late = times(window_tokens=2, ended_in_window=False)
    own = sample(requests=(times(), late))
    assert own.tokens_per_s == pytest.approx(13 / 11)
    assert own.good_tokens_per_s(SLO_2S) == pytest.approx(13 / 11), "its start was in it"
    assert own.goodput_rps(SLO_2S) == pytest.approx(1 / 11)


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0.25, 0.5, 0.95, 1.0)] == [1, 2, 4, 4]
    assert quantile([7.0], 0.5) == 7.0


def test_the_best_load_has_the_most_good_tokens() -> None:
    loads = [sample(users=1, good=3), sample(users=2, good=5), sample(users=4, good=4, bad=9)]
    assert best_users(loads, SLO_2S) == 2
    none_good = [sample(users=1, good=0, bad=2), sample(users=2, good=0, bad=5)]
    assert best_users(none_good, SLO_2S) == 2


@pytest.mark.parametrize(
    ("good", "is_past"),
    [([3], False), ([5, 3], False), ([5, 3, 4], True), ([5, 3, 6], False), ([5, 6, 4], False)],
)
def test_two_loads_below_the_best_are_enough(good: list[int], is_past: bool) -> None:
    loads = [sample(users=2**power, good=count) for power, count in enumerate(good)]
    assert is_past_best(loads[::-1], SLO_2S) is is_past


def test_figures_are_medians_of_rounds() -> None:
    rounds = [sample(round=number, good=good) for number, good in enumerate((4, 9, 5))]
    own = figures(rounds, SLO_2S)
    assert (own.rounds, own.good_tokens_per_s) == (3, 5)
    assert (own.least_good_tokens_per_s, own.most_good_tokens_per_s) == (4, 9)
    assert own.ttft_p50_s == 0.5 and own.tpot_p95_s == pytest.approx(0.01)
    assert own.computed_ratio == 1


def test_a_sample_goes_through_json() -> None:
    for own in (sample(good=2, bad=1), sample(decode=None)):
        assert Sample.from_json(json.loads(json.dumps(asdict(own)))) == own
