"""What a running server's counters say: quantiles, and which limit binds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LimitName = Literal[
    "down", "kv_memory", "places", "no_step", "traffic", "host", "prefill_compute",
    "decode_compute", "kv_bandwidth", "weight_bandwidth",
]  # fmt: skip

_KV_FULL_RATIO = 0.9
# Who has waited so long beside a free place, with so much of the memory used, waits for blocks;
# with less used, for the prompts before it.
_KV_TIGHT_RATIO = 0.5
_LONG_WAIT_S = 1.0
# Shares of the time: below, the machine mostly waits; above, the host holds the steps up.
_IDLE_RATIO = 0.5
_OVERHEAD_RATIO = 0.25


def histogram_quantile(quantile: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """By linear interpolation within a bucket, as Prometheus does it. None without observations.

    buckets: (upper bound, observations up to it) in rising order, the last bound infinite; a
        quantile that falls there is the bound before it
    """
    assert 0 <= quantile <= 1 and buckets and math.isinf(buckets[-1][0])
    total = buckets[-1][1]
    if total <= 0:
        return None
    rank, lower, before = quantile * total, 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > before:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - before) / (count - before)
        lower, before = bound, count
    return lower


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A server's state, and what its counters have grown by in an interval."""

    is_up: bool
    running: float
    max_running: float
    waiting: float  # in the engine and in the server's queue
    longest_wait_s: float  # in the engine
    kv_usage_ratio: float
    preemptions: float
    busy_s: float
    idle_s: float
    overhead_s: float
    memory_s: float  # of the steps' time, what went by bytes, and the rest
    compute_s: float
    prefill_s: float  # of the steps' time, by phase
    decode_s: float
    weight_bytes: float
    kv_bytes: float

    @property
    def total_s(self) -> float:
        return self.busy_s + self.idle_s + self.overhead_s


@dataclass(frozen=True, slots=True)
class Limit:
    name: LimitName
    sentence: str


def live_limit(load: Load) -> Limit:
    """The first of these that holds. What keeps requests out of the batch comes before what holds
    the batch up, and advice follows the order batch, share, quantize."""
    if not load.is_up:
        return Limit("down", "the engine is down: no token is made until the server is restarted")
    if load.preemptions > 0 or _waits_for_blocks(load):
        return Limit(
            "kv_memory",
            f"KV memory ({_percent(load.kv_usage_ratio)} used, {load.preemptions:.0f} "
            "preemptions): share prefixes, give it more (kv_cache_bytes), then int8",
        )
    if load.waiting > 0 and load.running >= load.max_running > 0:
        return Limit(
            "places",
            f"places ({load.running:.0f} of {load.max_running:.0f} taken, {load.waiting:.0f} "
            "wait): raise max_num_seqs while TPOT allows, or add a replica",
        )
    total_s = load.total_s
    if total_s <= 0 and load.running + load.waiting > 0:
        return Limit(
            "no_step",
            f"no step has ended ({load.running:.0f} running, {load.waiting:.0f} waiting): one is "
            "longer than the interval, or the engine hangs",
        )
    if load.busy_s <= 0 or load.idle_s >= _IDLE_RATIO * total_s:
        idle = load.idle_s / total_s if total_s > 0 else 1.0
        return Limit(
            "traffic",
            f"traffic (idle {_percent(idle)} of the time): more requests would cost nothing more",
        )
    if load.overhead_s >= _OVERHEAD_RATIO * (load.busy_s + load.overhead_s):
        share = load.overhead_s / (load.busy_s + load.overhead_s)
        return Limit(
            "host",
            f"the host ({_percent(share)} of the loop's time is between steps): give the engine "
            "cores of its own",
        )
    return _step_limit(load)


def _waits_for_blocks(load: Load) -> bool:
    if load.waiting == 0:
        return False
    has_place = load.running < load.max_running and load.longest_wait_s >= _LONG_WAIT_S
    return load.kv_usage_ratio >= (_KV_TIGHT_RATIO if has_place else _KV_FULL_RATIO)


def _step_limit(load: Load) -> Limit:
    stepped_s = load.memory_s + load.compute_s
    if load.memory_s < load.compute_s:
        share = f"{_percent(load.compute_s / stepped_s)} of the steps' time"
        if load.prefill_s > load.decode_s:
            return Limit(
                "prefill_compute",
                f"compute, for prompts ({share}): share prefixes, then weights that multiply in "
                "8 bits",
            )
        return Limit(
            "decode_compute",
            f"compute, for decodes ({share}): the batch is large enough; a faster processor or a "
            "replica",
        )
    share = f"{_percent(load.memory_s / stepped_s) if stepped_s else '?'} of the steps' time"
    if load.kv_bytes > load.weight_bytes:
        return Limit(
            "kv_bandwidth",
            f"memory bandwidth, for keys and values ({share}): shorter contexts, then int8 KV",
        )
    return Limit(
        "weight_bandwidth",
        f"memory bandwidth, for weights ({share}): a larger batch shares them, then int8 or int4",
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"
