"""Dollars, by examples that others have printed or that are worked out here by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.planner import cost

POSITIVE = st.floats(0.01, 1e6)


def test_opencosts_worked_example() -> None:
    # OpenCost, docs/inference-cost-tracking.md: $3.20 an hour, 12 M prompt tokens of which 800,000
    # were cached, 3 M generated, 600 s in prefill and 600 s in decode.
    assert cost.usd_per_million(3.2, 15e6) == pytest.approx(0.213, abs=5e-4)
    input_usd, output_usd = cost.split_by_time(3.2, 600, 600)
    assert cost.usd_per_million(input_usd, 11.2e6) == pytest.approx(0.143, abs=5e-4)
    assert cost.usd_per_million(output_usd, 3e6) == pytest.approx(0.533, abs=5e-4)


@pytest.mark.parametrize(("utilization", "usd"), [(1.0, 0.764), (0.4, 1.911)])
def test_an_idle_machine_makes_tokens_dearer(utilization: float, usd: float) -> None:
    # 6.88 / (2,500 · 3,600) · 1e6 = 0.7644, and over 0.4 of that: 1.911.
    assert cost.usd_per_million_at(6.88, 2500, utilization) == pytest.approx(usd, abs=5e-4)


def test_good_tokens_pay_for_all_the_time() -> None:
    # Half an hour at $8 is $4; 2 M of the tokens were good.
    assert cost.usd_per_million_good_tokens(2e6, 1800, 8.0) == 2.0


@given(tokens=POSITIVE, more=POSITIVE, elapsed=POSITIVE, usd=POSITIVE)
def test_more_good_tokens_never_cost_more_each(
    tokens: float, more: float, elapsed: float, usd: float
) -> None:
    few = cost.usd_per_million_good_tokens(tokens, elapsed, usd)
    assert cost.usd_per_million_good_tokens(tokens + more, elapsed, usd) <= few


def test_a_bill_is_split_without_rest() -> None:
    assert cost.split_by_time(10.0, 1.0, 3.0) == (2.5, 7.5)


def test_a_cache_saves_less_than_its_hits() -> None:
    # 1 M tokens at 0.1 µ$ avoided is 10 ¢; 100 blocks held for 2 h at 0.2 m$ an hour are 4 ¢.
    assert cost.cached_saving_usd(1e6, 1e-7, 200, 2e-4) == pytest.approx(0.1 - 0.04)


def test_an_api_bills_cached_tokens_apart() -> None:
    # 700 fresh at 2 µ$, 300 cached at 0.5 µ$, 100 out at 8 µ$.
    prices = {"input_cost_per_token": 2e-6, "output_cost_per_token": 8e-6}
    found = cost.api_usd(1000, 300, 100, **prices, cache_read_input_token_cost=5e-7)
    assert found == pytest.approx(1400e-6 + 150e-6 + 800e-6)
    assert cost.api_usd(1000, 300, 100, **prices) == pytest.approx(2000e-6 + 800e-6)


def test_break_even_of_a_reservation() -> None:
    # A reservation at 40 % off pays from 60 % of the hours on.
    assert cost.reserved_break_even_ratio(0.6 * 55.04, 55.04) == pytest.approx(0.6)


def test_interruptions_make_spot_dearer() -> None:
    # 0.05 an hour, 10 minutes each: 1 / (1 − 0.05 / 6) = 1.0084; $12.70 become $12.81.
    found = cost.spot_effective_usd_per_hour(12.7, 0.05, drain_s=120, reload_s=300, lost_s=180)
    assert found == pytest.approx(12.81, abs=0.005)
    never = cost.spot_effective_usd_per_hour(12.7, 7, drain_s=120, reload_s=300, lost_s=180)
    assert math.isinf(never)


def test_an_own_machine_by_the_hour() -> None:
    # $262,800 over 3 years of 8,760 h are $10; 8 kW at a PUE of 1.25 and 10 ¢ are $1; $8,760 a
    # year to run it are another.
    found = cost.on_premise_usd_per_hour(
        262_800, 3, 8.0, 0.1, pue_ratio=1.25, yearly_operation_usd=8760
    )
    assert found == pytest.approx(12.0)


def test_tokens_from_which_own_machines_pay() -> None:
    # $5,000 a month against $0.5 a million: 10,000 million tokens.
    assert cost.self_host_break_even_tokens(5000, 0.5) == pytest.approx(1e10)


def test_the_newsvendors_quantile() -> None:
    # Overage is the floor's price, underage what it saves: (6 − 2) / 6 of demand.
    assert cost.newsvendor_quantile(2, 6) == pytest.approx(2 / 3)
    assert cost.newsvendor_quantile(6, 6) == 0
    assert cost.newsvendor_quantile(7, 6) == 0
