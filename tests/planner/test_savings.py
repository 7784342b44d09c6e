"""Savings by numbers that are counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.planner.savings import cost_ratio, machine_s_per_million, saving_ratio, waterfall

RATES = st.floats(1e-3, 1e9)


def test_a_machine_of_250_tokens_per_second_needs_4000_seconds() -> None:
    assert machine_s_per_million(250) == 4000


def test_twice_as_fast_costs_half() -> None:
    assert cost_ratio(200, 100) == 0.5 and saving_ratio(200, 100) == 0.5
    assert saving_ratio(50, 100) == -1


def test_the_waterfall_by_hand() -> None:
    falls = waterfall([100, 125, 100, 400])
    assert [(f.before, f.after) for f in falls] == [(1, 0.8), (0.8, 1), (1, 0.25)]
    assert falls[0].saved == pytest.approx(0.2) and falls[1].saved == pytest.approx(-0.2)


@given(st.lists(RATES, min_size=1, max_size=7))
def test_what_stages_save_adds_up(rates: list[float]) -> None:
    falls = waterfall(rates)
    assert len(falls) == len(rates) - 1
    total = sum(fall.saved for fall in falls)
    assert total == pytest.approx(saving_ratio(rates[-1], rates[0]), rel=1e-6, abs=1e-6 * max(
        cost_ratio(rate, rates[0]) for rate in rates
    ))  # fmt: skip


@given(RATES, RATES, RATES)
def test_a_faster_stage_never_costs_more(first: float, a: float, b: float) -> None:
    slow, fast = sorted((a, b))
    assert cost_ratio(fast, first) <= cost_ratio(slow, first)
    assert machine_s_per_million(fast) <= machine_s_per_million(slow)
