"""A stall of the server shows in an open loop and hides in a closed one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from loadtest import summary
from tests.e2e.target import REPOSITORY, serving
from tests.loadtest.locust_runs import RunningLocust, run_locust
from tests.loadtest.scripted_triton import Addresses, scripted_triton

# In each 2 s the server answers within about 30 ms for 1.2 s, and then not at all for 0.8 s.
STALL_EVERY_S, STALL_S = 2.0, 0.8


def test_a_planted_stall(tmp_path: Path) -> None:
    timing = {"ttft_s": 0.02, "gap_s": 0.005}
    lengths = ["--output-tokens", "3", "--length-cv", "0", "--run-time", "6s"]
    with scripted_triton(**timing, stall_every_s=STALL_EVERY_S, stall_s=STALL_S) as target:
        loops = [
            RunningLocust(target, tmp_path / "closed", "--arrival", "closed", *lengths),
            RunningLocust(
                target, tmp_path / "open", "--arrival", "constant", "--rate", "25", *lengths
            ),
        ]
        closed, open_ = (loop.result() for loop in loops)

    # Both met the stalls: whoever waits through one whole waits 0.8 s.
    assert closed.latency("e2e")["max"] > 0.7
    assert open_.latency("e2e")["max"] > 0.7
    # The closed loop sends one request into each stall and dozens between two: below one in ten
    # is slow. Of the open loop's, evenly spread, 40 % meet a stall and one in five waits for more
    # than half of it.
    assert closed.latency("e2e")["p90"] < 0.15
    assert open_.latency("e2e")["p90"] > 0.4
    # Nor was the open loop late itself: those requests were sent on time.
    assert len(open_.records) == 150
    lag_p50_s = open_.summary["total"]["schedule_lag_s"]["p50"]
    assert lag_p50_s < 0.05


@pytest.mark.e2e
def test_stalls_of_50_ms_in_the_real_server(tmp_path: Path) -> None:
    """A quarter of the time the engine stands still, for 50 ms (stalling_model.py). A request
    takes some milliseconds, so of those a closed loop sends, one after another, few meet a stall;
    of those that arrive evenly, every fourth and more."""
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    model = Path(__file__).with_name("stalling_model.py")
    shutil.copy(model, repository / "llm" / "1" / "model.py")
    load = ["--input-tokens", "4", "--output-tokens", "1", "--length-cv", "0", "--run-time", "8s"]
    loops = {
        "closed": ["--arrival", "closed", "--users", "1"],
        "open": ["--arrival", "poisson", "--rate", "30"],
    }
    with serving(tmp_path, "batched", repository=repository, num_threads=1) as target:
        addresses = Addresses(grpc=target.settings.grpc_url, http=target.settings.http_url)
        closed, open_ = (
            run_locust(addresses, tmp_path / name, *load, *options)
            for name, options in loops.items()
        )
    closed_s, open_s = (
        np.array([summary.response_e2e_s(record) for record in run.with_status("ok")])
        for run in (closed, open_)
    )
    num_stalls = 8 / 0.2
    assert len(closed_s) > 5 * num_stalls, "too slow for most of its requests to miss a stall"
    assert len(open_s) > 180
    undisturbed_s = np.median(closed_s)
    # Both met stalls, and neither is slower without one.
    assert min(closed_s.max(), open_s.max()) > 0.045
    assert np.median(open_s) < undisturbed_s + 0.025
    closed_delayed, open_delayed = (np.mean(s > undisturbed_s + 0.01) for s in (closed_s, open_s))
    # One request of the closed loop waits through each stall. Of the open loop's a fifth and more
    # do: for 40 of 200 ms, more than 10 ms of a stall lie ahead.
    assert closed_delayed < 1.5 * num_stalls / len(closed_s)
    assert open_delayed > max(0.1, closed_delayed)
