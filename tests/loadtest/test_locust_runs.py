"""Whole runs of Locust against a scripted server: what is sent, recorded and judged."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from loadtest.workloads import Workload
from tests.e2e.target import wait_until
from tests.loadtest.locust_runs import LocustRun, RunningLocust, run_locust
from tests.loadtest.scripted_triton import FAILS, Addresses


def assert_exact(run: LocustRun) -> None:
    """Every answer has the tokens that its request asked for, one an output."""
    workload = Workload(run.settings.workload)
    for record in run.with_status("ok"):
        request = workload.request(record.index)
        assert record.input_tokens == len(request.input_ids)
        assert record.output_tokens == [1] * request.max_tokens
        assert record.finish_reason == "length"
        assert record.sent_ns is not None
        assert record.sent_ns < record.first_text_ns == record.output_ns[0]  # type: ignore[operator]
        assert record.output_ns == sorted(record.output_ns)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_open_loop_with_cancellations(triton: Addresses, tmp_path: Path, transport: str) -> None:
    run = run_locust(
        triton, tmp_path / "run", "--transport", transport, "--workload", "cancel",
        "--cancel-ratio", "0.4", "--cancel-after", "0.3", "--output-tokens", "8",
        "--arrival", "poisson", "--rate", "15", "--run-time", "3s", "--seed", "4",
        "--json-file", str(tmp_path / "locust"),
    )  # fmt: skip
    schedule_ns = run.settings.schedule_ns()
    assert len(schedule_ns) > 20
    records = sorted(run.records, key=lambda record: record.index)
    assert [record.intended_ns for record in records] == schedule_ns
    assert all(r.sent_ns is not None and r.sent_ns >= r.intended_ns for r in records)
    assert_exact(run)

    planned = [Workload(run.settings.workload).request(r.index).cancel_after_s for r in records]
    statuses = ["ok" if after_s is None else "cancelled" for after_s in planned]
    assert [record.status for record in records] == statuses
    assert {"ok", "cancelled"} == set(statuses)
    for record in run.with_status("cancelled"):
        assert len(record.output_tokens) < record.max_tokens

    # Locust has seen the whole answers, and no failure.
    rows = {row["method"]: row for row in json.loads((tmp_path / "locust.json").read_text())}
    for method in (transport.replace("grpc", "gRPC").replace("http", "HTTP"), "TTFT ms", "TPOT µs"):
        assert rows[method]["num_requests"] == statuses.count("ok")
        assert rows[method]["num_failures"] == 0
    assert rows["TTFT ms"]["min_response_time"] >= 50
    assert (tmp_path / "run" / "report.html").exists()


def test_closed_loop_of_many_streams(tmp_path: Path, triton: Addresses) -> None:
    run = run_locust(
        triton, tmp_path / "run", "--users", "100", "--spawn-rate", "100", "--run-time", "3s",
        "--output-tokens", "10", "--length-cv", "0",
    )  # fmt: skip
    assert run.code == 0, run.output
    ok = run.with_status("ok")
    assert len(run.records) == len(ok) >= 100
    assert_exact(run)
    assert sorted(record.index for record in ok) == list(range(len(ok)))
    # As many at a time as there are users, no more.
    ends = sorted(record.output_ns[-1] for record in ok)
    starts = sorted(record.sent_ns or 0 for record in ok)
    assert all(starts[number] > ends[number - 100] for number in range(100, len(ok)))
    assert "Note: closed loop" in run.output
    assert run.summary["total"]["schedule_lag_s"] is None


def test_failed_requests_are_recorded_and_make_the_run_invalid(
    triton: Addresses, tmp_path: Path
) -> None:
    run = run_locust(
        triton, tmp_path / "run", "--output-tokens", str(FAILS), "--length-cv", "0",
        "--arrival", "constant", "--rate", "5", "--run-time", "1s",
    )  # fmt: skip
    assert [record.error for record in run.records] == ["planted"] * 5
    assert [record.output_tokens for record in run.records] == [[1]] * 5
    assert run.summary["total"]["goodput"]["ratio"] == 0
    assert "INVALID: no request came to its end" in run.output
    assert run.code == 3


def test_arrivals_over_the_cap_are_dropped_and_make_the_run_invalid(
    triton: Addresses, tmp_path: Path
) -> None:
    run = run_locust(
        triton, tmp_path / "run", "--max-in-flight", "2", "--output-tokens", "40",
        "--length-cv", "0", "--arrival", "constant", "--rate", "10", "--run-time", "2s",
    )  # fmt: skip
    # A request takes 0.83 s, so two of about eight arrivals find room.
    assert len(run.records) == 20
    assert 2 <= len(run.with_status("ok")) <= 8
    assert len(run.with_status("ok")) + len(run.with_status("dropped")) == 20
    assert "dropped" in run.summary["validity"]["reasons"][0]
    assert run.code == 3


def test_ctrl_c_reports_what_there_is(triton: Addresses, tmp_path: Path) -> None:
    running = RunningLocust(
        triton, tmp_path / "run", "--arrival", "constant", "--rate", "10",
        "--run-time", "60s", "--output-tokens", "30", "--length-cv", "0",
    )  # fmt: skip
    path = tmp_path / "run" / "requests-0.jsonl"
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") > 8, "eight answers")
    running.process.send_signal(signal.SIGINT)

    run = running.result()

    assert len(run.with_status("ok")) >= 8
    assert len(run.with_status("cut_off")) >= 1
    assert not run.with_status("error")
    assert run.files[0].end is not None and run.files[0].end["ended_early"]
    assert "Report: " in run.output and "Latencies, ms" in run.output
    assert run.summary["total"]["counts"]["ok"] == len(run.with_status("ok"))


def test_ctrl_c_cuts_a_drain_short(triton: Addresses, tmp_path: Path) -> None:
    running = RunningLocust(
        triton, tmp_path / "run", "--arrival", "constant", "--rate", "4", "--run-time", "1s",
        "--output-tokens", "1500", "--length-cv", "0", "--input-tokens", "9",
    )  # fmt: skip
    path = tmp_path / "run" / "requests-0.jsonl"
    wait_until(path.exists, "a start")
    time.sleep(3)  # the run is over, its requests would take half a minute more
    assert path.read_bytes().count(b"\n") == 1
    running.process.send_signal(signal.SIGINT)

    run = running.result()

    assert len(run.with_status("cut_off")) == len(run.records) == 4
    assert all(record.output_tokens for record in run.records)
    assert "INVALID: no request came to its end" in run.output


def test_processes_share_one_schedule(triton: Addresses, tmp_path: Path) -> None:
    run = run_locust(
        triton, tmp_path / "run", "--processes", "2", "--arrival", "gamma", "--burstiness", "0.5",
        "--rate", "12", "--run-time", "2s", "--output-tokens", "8", "--seed", "2",
    )  # fmt: skip
    schedule_ns = run.settings.schedule_ns()
    assert [file.header["worker"] for file in run.files] == [0, 1]
    for worker, file in enumerate(run.files):
        assert [r.index for r in sorted(file.records, key=lambda r: r.index)] == list(
            range(worker, len(schedule_ns), 2)
        )
        assert file.end is not None
    intended = {record.index: record.intended_ns for record in run.records}
    assert [intended[index] for index in range(len(schedule_ns))] == schedule_ns
    assert_exact(run)
    assert run.summary["workers"] == 2
    assert run.summary["total"]["counts"]["ok"] == len(schedule_ns)


def test_an_unreachable_server_is_an_error_at_once(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{bound.getsockname()[1]}"
        target = Addresses(grpc=nobody, http=f"http://{nobody}")
        run = run_locust(target, tmp_path / "run", "--transport", "http", "--run-time", "60s")
    assert run.code == 1
    assert f"HTTP {nobody}: Connection refused" in run.output


def test_bad_options_are_named(triton: Addresses, tmp_path: Path) -> None:
    run = run_locust(triton, tmp_path / "run", "--arrival", "constant", "--rate", "0")
    assert run.code == 1
    assert "rate: got 0.0, must be above 0" in run.output


def test_the_web_page_starts_and_stops_runs(triton: Addresses, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    running = RunningLocust(
        triton, tmp_path / "run", "--headful", "--web-host", "127.0.0.1", "--web-port", str(port)
    )
    form = {"user_count": 2, "spawn_rate": 2, "host": triton.http, "output_tokens": "5"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as web:
        wait_until(lambda: answers(web), "the page is up")
        assert web.post("/swarm", data=form).json()["success"]
        path = tmp_path / "run" / "requests-0.jsonl"
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") > 3, "answers")
        assert web.post("/stop").json()["success"]
        wait_until((tmp_path / "run" / "report.html").exists, "a report")
    running.process.send_signal(signal.SIGTERM)

    run = running.result()

    assert run.code == 0, run.output
    assert {record.status for record in run.records} == {"ok"}
    assert run.settings.num_users == 2


def answers(web: httpx.Client) -> bool:
    try:
        return web.get("/").status_code == 200
    except httpx.TransportError:
        return False
