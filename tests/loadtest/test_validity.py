"""When a run may be believed."""

from __future__ import annotations

import pytest

from loadtest.summary import summarize_run
from loadtest.validity import Validity, lag_limit_s
from tests.loadtest.made_up_runs import failed, record, worker_records


def test_a_punctual_run_is_valid() -> None:
    run = summarize_run([worker_records([record(i, lag_ms=4.9) for i in range(200)])])
    assert run.validity == Validity(())
    assert run.validity.valid


@pytest.mark.parametrize(
    ("ttft_s", "limit_s"), [(0.02, 0.001), (0.1, 0.005), (0.5, 0.005), (10, 0.005)]
)
def test_limit_of_the_lag(ttft_s: float, limit_s: float) -> None:
    assert lag_limit_s(ttft_s) == pytest.approx(limit_s)


@pytest.mark.parametrize(("ttft_ms", "lag_ms"), [(1000, 5.1), (20, 1.1)])
def test_a_late_generator_is_invalid(ttft_ms: float, lag_ms: float) -> None:
    # Three of 200 are late, so the p99 is.
    records = [record(i, ttft_ms=ttft_ms, lag_ms=lag_ms * (i < 3)) for i in range(200)]
    validity = summarize_run([worker_records(records)]).validity
    assert not validity.valid
    assert validity.reasons[0].startswith(f"schedule lag p99 is {lag_ms:.2f} ms, above")


def test_a_single_late_request_of_many_is_forgiven() -> None:
    records = [record(i, ttft_ms=1000, lag_ms=50 * (i == 7)) for i in range(200)]
    assert summarize_run([worker_records(records)]).validity.valid


def test_dropped_arrivals_are_invalid() -> None:
    validity = summarize_run([worker_records([record(), failed("dropped")])]).validity
    assert validity.reasons == ("1 arrivals met --max-in-flight requests and were dropped",)


def test_missing_processes_are_invalid() -> None:
    validity = summarize_run([worker_records([record()], workers=2)]).validity
    assert validity.reasons == ("records of 1 of 2 processes",)


def test_no_answer_at_all_is_invalid() -> None:
    validity = summarize_run([worker_records([failed("error")])]).validity
    assert "no request came to its end" in validity.reasons


def test_a_closed_loop_is_valid_with_a_warning() -> None:
    validity = summarize_run([worker_records([record()], arrival="closed")]).validity
    assert validity.valid
    assert validity.warnings[0].startswith("closed loop: ")


def test_a_killed_process_is_told_of() -> None:
    validity = summarize_run([worker_records([record()], killed=True)]).validity
    assert validity.valid
    assert "process 0 was killed" in validity.warnings[0]


def test_a_busy_process_is_told_of() -> None:
    file = worker_records([record()])
    assert file.end is not None
    file.end["cpu_ratio"] = 0.97
    assert "process 0 used 97% of a core" in summarize_run([file]).validity.warnings[0]


def test_short_answers_are_told_of() -> None:
    validity = summarize_run([worker_records([record(), record(max_tokens=9)])]).validity
    assert validity.valid
    assert validity.warnings == ("1 answers were shorter than asked for: the load was lighter",)
