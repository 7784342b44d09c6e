"""Arrival schedules: rate, spread, seed, partition."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.arrivals import ARRIVALS, Arrival, partition, schedule


def gaps(arrival: Arrival, burstiness: float = 1.0) -> np.ndarray:
    times = schedule(arrival, rate=50, duration_s=2000, seed=3, burstiness=burstiness)
    return np.diff(times)


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_mean_rate(arrival: Arrival) -> None:
    # 100,000 gaps: their mean is within 1 % for every CV used here.
    assert gaps(arrival, 0.5).mean() == pytest.approx(1 / 50, rel=0.02)


@pytest.mark.parametrize(
    ("arrival", "burstiness", "cv"),
    [
        ("constant", 1.0, 0.0),
        ("poisson", 1.0, 1.0),
        ("poisson", 0.25, 1.0),  # burstiness is gamma's alone
        ("gamma", 0.25, 2.0),
        ("gamma", 1.0, 1.0),
        ("gamma", 4.0, 0.5),
    ],
)
def test_coefficient_of_variation(arrival: Arrival, burstiness: float, cv: float) -> None:
    spread = gaps(arrival, burstiness)
    assert spread.std() / spread.mean() == pytest.approx(cv, rel=0.03, abs=1e-9)


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_times_ascend_and_stay_within_the_duration(arrival: Arrival) -> None:
    times = schedule(arrival, rate=20, duration_s=30, seed=0)
    assert times[0] >= 0
    assert (np.diff(times) >= 0).all()
    assert 29 < times[-1] < 30


def test_constant_arrivals_are_multiples() -> None:
    times = schedule("constant", rate=4, duration_s=1, seed=0)
    assert times.tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("arrival", ["poisson", "gamma"])
def test_seed_decides(arrival: Arrival) -> None:
    def draw(seed: int, duration_s: float = 100) -> list[float]:
        return schedule(arrival, rate=30, duration_s=duration_s, seed=seed).tolist()

    assert draw(1) == draw(1)
    assert draw(1)[:50] != draw(2)[:50]
    longer = draw(1, 200)
    assert longer[: len(draw(1))] == draw(1)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_partitions_are_disjoint_and_whole(workers: int) -> None:
    parts = [partition(100, worker, workers) for worker in range(workers)]
    assert sorted(i for part in parts for i in part) == list(range(100))


@pytest.mark.parametrize(
    "bad", [{"rate": 0.0}, {"rate": float("inf")}, {"duration_s": -1.0}, {"burstiness": 0.0}]
)
def test_bad_values_are_named(bad: dict[str, float]) -> None:
    name = next(iter(bad)).removesuffix("_s")
    with pytest.raises(ValueError, match=rf"{name}: got .*, must be above 0"):
        schedule("gamma", **{"rate": 1.0, "duration_s": 1.0, "seed": 0, **bad})  # type: ignore[arg-type]
