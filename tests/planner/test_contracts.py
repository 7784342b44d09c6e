"""Contracts by hand, in the order they must have, and against a simulation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import SLO
from octavo.errors import ConfigError
from octavo.planner import comparison, contracts, lulls, simulation, traffic
from octavo.planner.capacity import Request
from octavo.planner.contracts import EngineTime, OnPremise, Spot, Terms, TokenTerms
from octavo.planner.traffic import LoggedRequest, Traffic, Volume
from octavo.serving.request_log import RequestLog

# A machine is one engine that is planned for all of its time and does 3,600 output tokens an hour.
SPOT = Spot(2.0, 0.1, availability_ratio=0.8, drain_s=120, reload_s=360, lost_s=240)
TERMS = Terms(
    engine=EngineTime(prefill_s=0.0, decode_s=1.0), engines=1, on_demand_usd_per_hour=6.0,
    reserved_usd_per_hour=3.0, spot=SPOT, on_premise=OnPremise(70_080, 2, 4.0, 0.25, 1.0, 8760.0),
    api=TokenTerms(1e-4, 1e-3), load_ratio=1.0, start_s=360.0,
)  # fmt: skip


def hours(*machines: float) -> Traffic:
    """That need so many of TERMS' machines; a prompt token for each of output."""
    tokens = [each * 3600 for each in machines]
    return Traffic(1.0, tuple(Volume(n / 100, n, 0.0, n, n) for n in tokens))


def hybrid_usd(needed: list[int], floor: int, bucket_hours: float, terms: Terms) -> float:
    paid = lulls.paid_hours(needed, bucket_hours, terms.start_hours)
    return contracts.hybrid_usd(paid, floor, bucket_hours * len(needed), terms)


def by_name(found: list[contracts.Contract]) -> dict[str, contracts.Contract]:
    return {each.name: each for each in found}


def test_every_contract_by_hand() -> None:
    # 1, 3, 2 and 2 machines in four hours. Prices are of those hours; a month is 730 of them.
    own = hours(1, 2.5, 2, 1.5)
    found = by_name(contracts.contracts(own, TERMS))
    month = 730 / 4
    # 8 hours on demand. The second and the third machine start once, in 6 minutes; the first stays.
    assert found["on demand"].usd_per_month == pytest.approx(month * 6.0 * (8 + 2 * 0.1))
    assert found["reserved"].usd_per_month == pytest.approx(730 * 3 * 3.0)
    # $70,080 over 17,520 h are $4; 4 kW at 25 ¢ are $1; $8,760 a year are $1.
    assert found["on premise"].usd_per_month == pytest.approx(730 * 3 * 6.0)
    tokens = 7 * 3600
    assert found["token API"].usd_per_month == pytest.approx(month * tokens * (1e-4 + 1e-3))
    assert found["token API"].usd_per_million_good_tokens == pytest.approx(1100.0)
    # Spot: an interruption every ten hours takes 720 s, a fiftieth: 2 / 0.98. Burst: 0.8 of that
    # and a fifth of 6. 3 / 2.83 is above 1: nothing is committed to.
    burst = 0.8 * 2 / 0.98 + 0.2 * 6
    assert TERMS.burst_usd_per_hour == pytest.approx(burst)
    assert found["hybrid"].committed_machines == 0
    assert found["hybrid"].usd_per_month == pytest.approx(month * burst * 8.2)
    assert [each.usd_per_month for each in found.values()] == sorted(
        each.usd_per_month for each in found.values()
    )


def test_a_floor_by_hand() -> None:
    # Floor 3, burst 6: P(D > B) is to be a half at the most. Demand is 1, 2, 2 and 4.
    terms = replace(TERMS, spot=None, start_s=0.0)
    assert contracts.newsvendor_floor([1, 4, 2, 2], terms) == 2
    found = by_name(contracts.contracts(hours(1, 4, 2, 2), terms))["hybrid"]
    assert found.committed_machines == 2 and found.most_machines == 4
    assert found.usd_per_month == pytest.approx(730 / 4 * (2 * 3 * 4 + 2 * 6))


@given(
    needed=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    floor_usd=st.floats(0.5, 8), burst_usd=st.floats(1, 8),
)  # fmt: skip
def test_no_floor_is_cheaper_than_the_newsvendors(
    needed: list[int], floor_usd: float, burst_usd: float
) -> None:
    terms = replace(
        TERMS, spot=None, start_s=0.0, on_premise=None,
        reserved_usd_per_hour=floor_usd, on_demand_usd_per_hour=burst_usd,
    )  # fmt: skip
    chosen = contracts.newsvendor_floor(needed, terms)
    costs = [hybrid_usd(needed, floor, 1.0, terms) for floor in range(max(needed) + 1)]
    assert costs[chosen] == pytest.approx(min(costs))


@settings(deadline=None)
@given(
    demand=st.lists(st.floats(0.01, 20), min_size=1, max_size=40),
    factor=st.floats(1, 3),
    start_s=st.sampled_from([0.0, 300.0, 7200.0]),
)
def test_more_traffic_never_costs_less(demand: list[float], factor: float, start_s: float) -> None:
    terms = replace(TERMS, start_s=start_s)
    less = by_name(contracts.contracts(hours(*demand), terms))
    more = by_name(contracts.contracts(hours(*(each * factor for each in demand)), terms))
    for name in less:
        assert less[name].usd_per_month <= more[name].usd_per_month * (1 + 1e-9), name


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(0.01, 12), st.floats(0, 4)), min_size=1, max_size=40),
    start_s=st.sampled_from([0.0, 300.0, 1800.0, 7200.0, 1e6]),
    has_spot=st.booleans(), reserved=st.floats(0.1, 8),
)  # fmt: skip
def test_more_in_some_hours_costs_no_less_and_a_hybrid_no_more_than_its_parts(
    pairs: list[tuple[float, float]], start_s: float, has_spot: bool, reserved: float
) -> None:
    terms = replace(
        TERMS, start_s=start_s, spot=SPOT if has_spot else None, reserved_usd_per_hour=reserved
    )
    less = by_name(contracts.contracts(hours(*(few for few, _ in pairs)), terms))
    more = by_name(contracts.contracts(hours(*(few + most for few, most in pairs)), terms))
    for found in (less, more):
        for name in ("on demand", "reserved", "on premise"):
            assert found["hybrid"].usd_per_month <= found[name].usd_per_month * (1 + 1e-9), name
    for name in less:
        assert less[name].usd_per_month <= more[name].usd_per_month * (1 + 1e-9), name


@given(
    needed=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    start_s=st.sampled_from([0.0, 900.0, 3600.0, 9000.0, 1e6]), floor_usd=st.floats(0.1, 7),
)  # fmt: skip
def test_no_floor_at_all_is_cheaper_than_the_chosen(
    needed: list[int], start_s: float, floor_usd: float
) -> None:
    terms = replace(TERMS, start_s=start_s, on_premise=None, reserved_usd_per_hour=floor_usd)
    chosen = contracts.cheapest_floor(needed, 1.0, terms)
    costs = [hybrid_usd(needed, floor, 1.0, terms) for floor in range(max(needed) + 1)]
    assert costs[chosen] == pytest.approx(min(costs))


@given(
    needed=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    bucket_hours=st.sampled_from([0.25, 1.0]),
    start_hours=st.sampled_from([0.0, 0.1, 1.0, 2.5, 99.0]),
)  # fmt: skip
def test_each_machine_is_paid_for_its_hours_and_the_less_of_lull_and_start(
    needed: list[int], bucket_hours: float, start_hours: float
) -> None:
    found = lulls.paid_hours(needed, bucket_hours, start_hours)
    by_machine = [each.hours for each in found for _ in range(each.machines)]
    assert by_machine == sorted(by_machine, reverse=True) and len(by_machine) == max(needed)
    for machine, paid in enumerate(by_machine, 1):
        used = [at for at, count in enumerate(needed) if count >= machine]
        gaps = [
            later - now - 1
            for now, later in zip(used, [*used[1:], used[0] + len(needed)], strict=True)
        ]
        waited = sum(min(gap * bucket_hours, start_hours) for gap in gaps)
        assert paid == pytest.approx(len(used) * bucket_hours + waited)
    for floor in range(max(needed) + 1):
        assert lulls.hours_above(found, floor) == pytest.approx(sum(by_machine[floor:]))


def test_a_floor_takes_what_would_start_again_and_again() -> None:
    # Every other hour a second machine, in 45 minutes: 3 hours at $6 of four, so reserving it at $4
    # is 16 $ against 2 · 6 · 1.75 = 21. The rule sees half of the hours, below 4 / 6.
    terms = replace(TERMS, spot=None, on_premise=None, reserved_usd_per_hour=4.0, start_s=2700.0)
    assert contracts.newsvendor_floor([1, 2, 1, 2], terms) == 1
    found = by_name(contracts.contracts(hours(1, 2, 1, 2), terms))
    assert found["hybrid"].committed_machines == 2
    assert found["hybrid"].usd_per_month == pytest.approx(730 * 2 * 4.0)
    (by_rule,) = simulation.simulate([1, 2, 1, 2], 1.0, terms, [1], seed=0)
    assert by_rule.usd_per_month == pytest.approx(730 / 4 * (16 + 2 * 6 * 1.75))


def test_without_a_price_there_is_no_floor() -> None:
    terms = replace(TERMS, reserved_usd_per_hour=None, on_premise=None)
    assert simulation.floors_to_try([1, 5], terms, 0) == [0]
    assert contracts.cheapest_floor([1, 5], 1.0, terms) == 0
    with pytest.raises(ValueError, match="floor = 2: nothing to commit to has a price"):
        simulation.simulate([1, 5], 1.0, terms, [2], seed=0)
    assert simulation.floors_to_try([1, 9], TERMS, 4, 5) == [0, 2, 3, 4, 5, 6, 7, 9]


def test_the_simulation_agrees_with_the_formula_and_the_floor() -> None:
    own = traffic.forecast(Request(100, 100), 0.03, peak_ratio=1.9)
    terms = replace(TERMS, reserved_usd_per_hour=1.5, on_premise=None)
    needed = contracts.machines_needed(own, terms)
    assert max(needed) >= 5
    floors = list(range(max(needed) + 1))
    found = simulation.simulate(needed, own.bucket_hours, terms, floors, seed=1)
    for each in found:
        expected = hybrid_usd(needed, each.floor, own.bucket_hours, terms)
        assert each.usd_per_month == pytest.approx(expected * 730 / own.hours, rel=0.02)
    cheapest = min(found, key=lambda each: each.usd_per_month)
    assert abs(cheapest.floor - contracts.newsvendor_floor(needed, terms)) <= 1
    # 0.1 an hour of machine time, a fiftieth of it in vain, while there is spot.
    above = sum(needed)
    starts = sum(max(0, b - a) for a, b in zip([needed[-1], *needed], needed, strict=False))
    hours_paid = (above + starts * 0.1) / 0.98
    assert found[0].interruptions == pytest.approx(0.1 * 0.8 * hours_paid, rel=0.05)
    assert found == simulation.simulate(needed, own.bucket_hours, terms, floors, seed=1)
    assert found != simulation.simulate(needed, own.bucket_hours, terms, floors, seed=2)


def test_spot_that_is_always_interrupted_is_left_alone() -> None:
    terms = replace(TERMS, spot=replace(SPOT, interruptions_per_hour=9.0))
    assert math.isinf(terms.spot.effective_usd_per_hour)
    assert terms.burst_usd_per_hour == 6.0
    (found,) = simulation.simulate([2, 2], 1.0, terms, [0], seed=0)
    assert found.interruptions == 0


def test_the_worst_month_of_a_growing_year() -> None:
    own = traffic.forecast(Request(1, 100), 0.5, monthly_growth_ratio=0.1, months=3)
    calm = replace(TERMS, start_s=0.0)
    worst = comparison.worst_month(own, calm)
    third = Traffic(1.0, own.buckets[1460:])
    assert len(third.buckets) == 730
    found = by_name(contracts.contracts(third, calm))
    assert worst["token API"] == pytest.approx(found["token API"].usd_per_month)
    total = by_name(contracts.contracts(own, calm))["token API"].usd_per_month
    assert total == pytest.approx(worst["token API"] * (1 + 1.1 + 1.21) / 3 / 1.21)


def test_what_is_committed_to_stays_so_in_the_worst_month() -> None:
    # 2 machines, then 4. Reserved at half the price on demand: the rule commits to 2 of 4.
    own = Traffic(730.0, hours(2 * 730, 4 * 730).buckets)
    terms = replace(TERMS, spot=None, on_premise=None, start_s=0.0, reserved_usd_per_hour=3.5)
    found = by_name(contracts.contracts(own, terms))
    assert found["hybrid"].committed_machines == 2
    worst = comparison.worst_month(own, terms)
    assert worst["hybrid"] == pytest.approx(730 * (2 * 3.5 + 2 * 6.0))
    assert worst["reserved"] == found["reserved"].usd_per_month


def test_the_worst_month_of_a_short_log_is_made_of_its_dearest_day() -> None:
    own = hours(*[1] * 24, *[3] * 24)
    worst = comparison.worst_month(own, TERMS)
    assert worst["token API"] == pytest.approx(730 * 3 * 3600 * 1.1e-3)
    # A day of few long answers is no reason to bill less than the mean month.
    prompts = Traffic(1.0, (*hours(*[1] * 24).buckets, *[Volume(1, 9e5, 0, 1, 1)] * 24))
    found = by_name(contracts.contracts(prompts, TERMS))
    assert comparison.worst_month(prompts, TERMS)["token API"] >= found["token API"].usd_per_month


def test_break_evens_by_hand() -> None:
    # On demand at $6 against a machine that costs $2 an hour to run: 4 · 730 saved a month.
    terms = replace(TERMS, spot=None, start_s=0.0)
    found = {each.unit: each for each in comparison.break_evens(hours(1, 1), terms)}
    assert found["ratio"].value == 0.5
    assert found["months"].value == pytest.approx(70_080 / (4 * 730))
    # An API at $1.1 for 1,000 tokens against machines of $3 an hour that do 3,600: two of them pay
    # from 6 / 1.1 thousand an hour on, and the third has to be filled again.
    value = found["output tokens a month"].value
    assert value == pytest.approx(6 / 1.1e-3 * 730, rel=1e-3)
    for factor, is_cheaper in ((0.999, False), (1.001, True)):
        hour = value / 730 / 3600 * factor
        costs = {each.name: each.usd_per_month for each in contracts.contracts(hours(hour), terms)}
        assert (costs["reserved"] < costs["token API"]) is is_cheaper


def test_a_swing_moves_what_depends_on_it_and_nothing_else() -> None:
    own = hours(1, 3, 2, 2)
    base = {each.name: each.usd_per_month for each in contracts.contracts(own, TERMS)}
    swings = {each.figure: each for each in comparison.sensitivity(own, TERMS)}
    moved = swings["reserved price"]
    assert moved.lower["reserved"] == pytest.approx(0.8 * base["reserved"])
    assert moved.higher["reserved"] == pytest.approx(1.2 * base["reserved"])
    assert moved.lower["on demand"] == base["on demand"] == moved.higher["on demand"]
    assert swings["API price"].higher["token API"] == pytest.approx(1.2 * base["token API"])
    assert swings["speed of an engine"].lower["on demand"] > base["on demand"]
    assert set(swings) == {
        "traffic", "speed of an engine", "price on demand", "reserved price", "capital",
        "spot price", "interruptions", "API price",
    }  # fmt: skip


LOGGED = LoggedRequest(1_700_000_000.0, "a", 100, 32, 11, "stop", 0.5, 1.5)


def write_log(path: Path, *requests: Any) -> Path:
    lines = [json.dumps(asdict(r) if isinstance(r, LoggedRequest) else r) for r in requests]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_log_is_read_and_put_into_hours(tmp_path: Path) -> None:
    day = [replace(LOGGED, arrival_s=LOGGED.arrival_s + 3600 * hour) for hour in range(30)]
    failed = replace(LOGGED, finish_reason="error", ttft_s=None, output_tokens=4)
    path = write_log(tmp_path / "log.jsonl", *reversed(day), failed)
    log = traffic.read_log(path)
    assert [each.arrival_s for each in log] == sorted(each.arrival_s for each in log)
    own = traffic.recorded(log)
    assert len(own.buckets) == 30 and own.hours == pytest.approx(29 + 1.5 / 3600)
    assert own.buckets[0] == Volume(2, 200, 64, 15, 11)
    assert own.total == Volume(31, 3100, 992, 30 * 11 + 4, 330)
    assert traffic.mean_request(own.total) == Request(100, 11, 32)


def test_what_the_server_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path, 2**20)
    late = replace(LOGGED, finish_reason="deadline", ttft_s=None, tenant="b")
    for each in (LOGGED, late):
        log.add(each)
    log.close()
    assert traffic.read_log(path) == [LOGGED, late]
    total = traffic.recorded([LOGGED, late]).total
    assert total.requests == 2 and total.answered_tokens == 11, "a deadline is no good end"


def test_a_log_is_as_long_as_its_requests() -> None:
    # A request a minute in 24 hours and a second: no second of the 25th hour is made up.
    log = [replace(LOGGED, arrival_s=LOGGED.arrival_s + 60 * at, e2e_s=1.0) for at in range(1441)]
    own = traffic.recorded(log)
    assert own.hours * 3600 == pytest.approx(24 * 3600 + 1)
    assert len(own.buckets) == 25 and own.total.requests == 1441
    api = by_name(contracts.contracts(own, TERMS))["token API"].usd_per_month
    assert api == pytest.approx(730 * 3600 / 86_401 * 1441 * (100 * 1e-4 + 11 * 1e-3))


def test_a_short_log_has_finer_pieces() -> None:
    log = [replace(LOGGED, arrival_s=LOGGED.arrival_s + second, e2e_s=0.0) for second in range(61)]
    own = traffic.recorded(log)
    assert len(own.buckets) == 12 and own.hours == pytest.approx(60 / 3600)
    assert own.total.requests == 61


def test_who_meets_the_slo() -> None:
    # (1.5 − 0.5) / 10 steps are 100 ms.
    assert LOGGED.meets(SLO(ttft_s=0.5, tpot_s=0.1))
    assert not LOGGED.meets(SLO(ttft_s=0.49, tpot_s=0.1))
    assert not LOGGED.meets(SLO(ttft_s=0.5, tpot_s=0.099))
    assert not replace(LOGGED, finish_reason="cancelled").meets(SLO(9, 9))
    assert not replace(LOGGED, ttft_s=None).meets(SLO(9, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": -1}, "line 2: prompt_tokens = -1: a finite number is expected, 0 or"),
        ({"output_tokens": float("nan")}, "line 2: output_tokens = nan: a finite number"),
        ({"cached_tokens": 101}, "line 2: cached_tokens = 101: .*at most 100"),
        ({"tenant": 3}, "line 2: tenant = 3: text is expected"),
        ({"ttft_s": "soon"}, "line 2: ttft_s = 'soon': a number is expected"),
        ({"e2e_s": True}, "line 2: e2e_s = True: a number is expected"),
        ({"arrival_s": 1.7e12}, r"line 2: arrival_s = 1700000000000.0: .*at most 1e\+11"),
        ({"output_tokens": 1e300}, r"line 2: output_tokens = 1e\+300: .*at most 1e\+09"),
        ({"arrival_s": 5.0}, "line 2: arrival_s = 5.0: with it the log spans .* at most 400"),
        ({"arrival_s": 2e9}, "line 2: arrival_s = 2000000000.0: with it the log spans 3,472 days"),
        ({"e2e_s": 9e8}, "line 2: e2e_s = 900000000.0: with it the log spans 10,417 days"),
    ],
)
def test_a_bad_line_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.jsonl", LOGGED, {**asdict(LOGGED), **change}, LOGGED)
    with pytest.raises(ConfigError, match=message):
        traffic.read_log(path)


def test_a_log_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.jsonl", LOGGED)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert traffic.read_log(path) == [LOGGED]


def test_a_log_in_which_nothing_ended_well_is_refused(tmp_path: Path) -> None:
    lost = [replace(LOGGED, finish_reason=reason) for reason in ("cancelled", "error")]
    path = write_log(tmp_path / "log.jsonl", *lost, replace(LOGGED, output_tokens=0))
    with pytest.raises(ConfigError, match=r"none of its 3 requests ended well .* with a token"):
        traffic.read_log(path)


@pytest.mark.parametrize("text", ["", "\n\n", "{}\n", "[]\n", "{\n"])
def test_a_log_without_requests_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"log\.jsonl.*(holds no request|missing|JSON)"):
        traffic.read_log(path)


def test_a_forecast_has_its_mean_its_peak_and_its_weekends() -> None:
    own = traffic.forecast(Request(10, 20), 2.0, peak_ratio=1.5, weekend_ratio=0.5, cached_tokens=4)
    days = [own.buckets[24 * day : 24 * day + 24] for day in range(7)]
    counts = [[each.requests for each in day] for day in days]
    assert sum(counts[0]) == pytest.approx(2 * 86_400)
    assert max(counts[0]) == pytest.approx(1.5 * 7200) and counts[0].index(max(counts[0])) == 14
    assert sum(counts[5]) == pytest.approx(sum(counts[0]) / 2) == sum(counts[6])
    first = own.buckets[0]
    assert first.cached_tokens == pytest.approx(first.requests * 4)
    assert len(own.buckets) == 730
