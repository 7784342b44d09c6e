"""Quantiles by hand, and which limit binds."""

import math
from dataclasses import replace
from typing import Any

import pytest

from octavo.planner.live import LimitName, Load, histogram_quantile, live_limit

INF = math.inf


@pytest.mark.parametrize(
    ("quantile", "buckets", "expected"),
    [
        (0.5, [(1.0, 10.0), (2.0, 20.0), (INF, 20.0)], 1.0),
        (0.75, [(1.0, 10.0), (2.0, 20.0), (INF, 20.0)], 1.5),
        (0.25, [(1.0, 10.0), (2.0, 20.0), (INF, 20.0)], 0.5),
        (0.99, [(1.0, 0.0), (2.0, 4.0), (INF, 4.0)], 1.99),
        (0.99, [(1.0, 1.0), (2.0, 1.0), (INF, 10.0)], 2.0),  # no more is known
        (0.0, [(1.0, 0.0), (2.0, 4.0), (INF, 4.0)], 1.0),
        (0.5, [(1.0, 0.0), (INF, 0.0)], None),
    ],
)
def test_quantiles_are_prometheus_own(
    quantile: float, buckets: list[tuple[float, float]], expected: float | None
) -> None:
    found = histogram_quantile(quantile, buckets)
    assert found == (None if expected is None else pytest.approx(expected))


# A server whose steps go by the weights that they read.
BUSY = Load(
    is_up=True, running=4, max_running=32, waiting=0, longest_wait_s=0, kv_usage_ratio=0.3,
    preemptions=0, busy_s=9.0, idle_s=0.5, overhead_s=0.5, memory_s=7.0, compute_s=2.0,
    prefill_s=3.0, decode_s=6.0, weight_bytes=9e9, kv_bytes=1e9,
)  # fmt: skip
STILL = {"busy_s": 0.0, "idle_s": 0.0, "overhead_s": 0.0}


@pytest.mark.parametrize(
    ("changes", "name", "part"),
    [
        ({}, "weight_bandwidth", "78 % of the steps' time"),
        ({"kv_bytes": 10e9}, "kv_bandwidth", "int8 KV"),
        ({"memory_s": 2.0, "compute_s": 7.0}, "decode_compute", "78 %"),
        (
            {"memory_s": 2.0, "compute_s": 7.0, "prefill_s": 6.0, "decode_s": 3.0},
            "prefill_compute", "share prefixes",
        ),
        ({"overhead_s": 3.0}, "host", "25 % of the loop's time"),
        ({"idle_s": 9.5}, "traffic", "idle 50 % of the time"),
        ({**STILL, "running": 0}, "traffic", "idle 100 %"),
        (STILL, "no_step", "4 running, 0 waiting"),
        ({**STILL, "running": 0, "waiting": 3}, "no_step", "0 running, 3 waiting"),
        ({"running": 32, "waiting": 5}, "places", "32 of 32 taken, 5 wait"),
        ({"waiting": 5}, "weight_bandwidth", ""),  # on their way in
        ({"waiting": 5, "kv_usage_ratio": 0.9}, "kv_memory", "90 % used, 0 preemptions"),
        ({"waiting": 0, "kv_usage_ratio": 0.95}, "weight_bandwidth", ""),
        ({"waiting": 5, "kv_usage_ratio": 0.6, "longest_wait_s": 1.5}, "kv_memory", "60 % used"),
        ({"waiting": 5, "kv_usage_ratio": 0.3, "longest_wait_s": 1.5}, "weight_bandwidth", ""),
        ({"running": 32, "waiting": 5, "kv_usage_ratio": 0.6, "longest_wait_s": 9}, "places", ""),
        ({"preemptions": 2}, "kv_memory", "2 preemptions"),
        ({"preemptions": 2, "is_up": False}, "down", "restarted"),
    ],
)  # fmt: skip
def test_the_first_limit_that_holds_is_named(
    changes: dict[str, Any], name: LimitName, part: str
) -> None:
    limit = live_limit(replace(BUSY, **changes))
    assert limit.name == name
    assert part in limit.sentence
