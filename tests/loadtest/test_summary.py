"""Numbers from records, against numpy and against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest import summary
from loadtest.records import Record
from loadtest.summary import Distribution, goodput, summarize, summarize_run
from tests.loadtest.made_up_runs import failed, record, settings, worker_records


def test_one_request_by_hand() -> None:
    one = record(intended_ms=1000, lag_ms=2, ttft_ms=100, gaps_ms=(10, 30, 20))
    assert summary.lag_s(one) == pytest.approx(0.002)
    assert summary.ttft_s(one) == pytest.approx(0.1)
    assert summary.e2e_s(one) == pytest.approx(0.16)
    assert summary.tpot_s(one) == pytest.approx(0.02)  # 60 ms for the three after the first
    assert list(summary.itl_s(one)) == pytest.approx([0.01, 0.03, 0.02])
    assert summary.response_ttft_s(one) == pytest.approx(0.102)
    assert summary.response_e2e_s(one) == pytest.approx(0.162)


def test_tpot_divides_by_tokens_and_not_by_outputs() -> None:
    several = record(ttft_ms=100, gaps_ms=(30, 30), output_tokens=[1, 3, 3])
    assert summary.tpot_s(several) == pytest.approx(0.06 / 6)


def test_ttft_waits_for_text() -> None:
    late = record(ttft_ms=100, gaps_ms=(10, 10))
    late.first_text_ns = late.output_ns[1]
    assert summary.ttft_s(late) == pytest.approx(0.11)
    assert summary.tpot_s(late) == pytest.approx(0.01 / 2)


def test_one_token_has_no_tpot() -> None:
    single = record(gaps_ms=())
    assert summary.tpot_s(single) is None
    assert summary.e2e_s(single) == summary.ttft_s(single)


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=1000)
    found = Distribution.of(list(values))
    assert found is not None
    assert (found.p50, found.p90, found.p99) == pytest.approx(np.percentile(values, [50, 90, 99]))
    assert (found.mean, found.min, found.max) == pytest.approx(
        (values.mean(), values.min(), values.max())
    )
    assert found.too_few == ()


@pytest.mark.parametrize(
    ("count", "too_few"),
    [
        (1, ("p50", "p90", "p99")),
        (199, ("p50", "p90", "p99")),
        (200, ("p90", "p99")),
        (500, ("p99",)),
        (999, ("p99",)),
        (1000, ()),
    ],
)
def test_few_values_are_flagged_and_still_shown(count: int, too_few: tuple[str, ...]) -> None:
    found = Distribution.of([1.0] * count)
    assert found is not None
    assert found.too_few == too_few
    assert found.p99 == 1.0


def test_no_values_are_none() -> None:
    assert Distribution.of([]) is None


def test_rates_by_hand() -> None:
    records = [record(i, intended_ms=i * 500, ttft_ms=100, gaps_ms=(50, 50)) for i in range(5)]
    records += [failed("error", 5), failed("dropped", 6)]
    found = summarize(records, settings())
    assert found.duration_s == pytest.approx(2.2)  # 0 to 2000 + 200 ms
    assert found.requests_per_s == pytest.approx(5 / 2.2)
    assert found.output_tokens == 15
    assert found.output_tokens_per_s == pytest.approx(15 / 2.2)
    assert found.input_tokens == 5 * 512
    assert found.cached_tokens is None
    assert found.counts == {"ok": 5, "error": 1, "cancelled": 0, "cut_off": 0, "dropped": 1}
    itl = found.latencies["ITL"]
    assert itl is not None and itl.count == 10


def test_latencies_are_those_of_whole_answers() -> None:
    slow = record(1, ttft_ms=9000, status="cancelled")
    found = summarize([record(0), slow], settings()).latencies["TTFT"]
    assert found is not None and found.count == 1 and found.max == pytest.approx(0.1)


def test_a_closed_loop_has_no_schedule_lag() -> None:
    assert summarize([record()], settings(arrival="closed")).schedule_lag_s is None
    assert summarize([record()], settings()).schedule_lag_s is not None


def test_cached_tokens_are_summed_when_told() -> None:
    records = [record(0, cached_tokens=16), record(1, cached_tokens=0), record(2)]
    assert summarize(records, settings()).cached_tokens == 16


def test_warm_up_is_not_counted() -> None:
    records = [record(i, intended_ms=i * 1000) for i in range(10)]
    run = summarize_run([worker_records(records, warmup_s=3.0)])
    assert run.total.counts["ok"] == 7


def test_processes_and_workloads_are_put_together() -> None:
    mine = worker_records([record(0), record(2, workload="rag")], workers=2)
    theirs = worker_records([record(1)], worker=1, workers=2)
    run = summarize_run([mine, theirs])
    assert run.total.counts["ok"] == 3
    assert {name: part.counts["ok"] for name, part in run.by_workload.items()} == {
        "chat": 2,
        "rag": 1,
    }


# --- goodput ---


def good(records: list[Record], duration_s: float | None = 2.0) -> summary.Goodput:
    return goodput(records, slo_ttft_s=0.1, slo_tpot_s=0.01, duration_s=duration_s)


def test_every_slo_must_be_met() -> None:
    records = [
        record(ttft_ms=100, gaps_ms=(10, 10)),  # at the limit: good
        record(ttft_ms=101, gaps_ms=(10, 10)),
        record(ttft_ms=100, gaps_ms=(10, 11)),
    ]
    found = good(records)
    assert (found.good, found.evaluated, found.good_tokens) == (1, 3, 3)
    assert found.ratio == pytest.approx(1 / 3)
    assert found.requests_per_s == pytest.approx(0.5)


def test_errors_are_not_good() -> None:
    found = good([record(), failed("error")])
    assert (found.good, found.evaluated, found.ratio) == (1, 2, 0.5)


@pytest.mark.parametrize("status", ["cut_off", "cancelled", "dropped"])
def test_requests_without_an_answer_of_their_own_are_left_out(status: str) -> None:
    found = good([record(), failed(status)])
    assert (found.good, found.evaluated, found.ratio) == (1, 1, 1.0)


def test_what_cannot_be_evaluated_is_left_out_of_both() -> None:
    found = good([record(), record(gaps_ms=())])
    assert (found.good, found.evaluated, found.ratio) == (1, 1, 1.0)


@pytest.mark.parametrize("records", [[], [failed("cut_off")], [record(gaps_ms=())]])
def test_nothing_to_evaluate_is_none_and_not_zero(records: list[Record]) -> None:
    found = good(records)
    assert found.ratio is None
    assert found.requests_per_s is None


def test_all_bad_is_zero_and_not_none() -> None:
    found = good([record(ttft_ms=5000)])
    assert found.ratio == 0.0
    assert found.requests_per_s == 0.0
