"""A seeded simulation of the hybrid contract, interruptions and all: is the floor the right one?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from octavo.planner.contracts import Terms
from octavo.planner.cost import HOUR_S, MONTH_HOURS

RUNS = 40


@dataclass(frozen=True, slots=True)
class Simulated:
    """Of a month with a floor, over the runs. interruptions: of a month"""

    floor: int
    usd_per_month: float
    deviation_usd: float
    interruptions: float


def simulate(
    needed: Sequence[int], bucket_hours: float, terms: Terms, floors: Sequence[int], seed: int
) -> list[Simulated]:
    """Each floor meets the same luck: in each stretch and run, whether there is spot, and how many
    interruptions a machine hour brings."""
    return [_of_floor(needed, bucket_hours, terms, floor, seed) for floor in floors]


def floors_to_try(needed: Sequence[int]) -> list[int]:
    return list(range(max(needed) + 1))


def _of_floor(
    needed: Sequence[int], bucket_hours: float, terms: Terms, floor: int, seed: int
) -> Simulated:
    month = MONTH_HOURS / (bucket_hours * len(needed))
    bills, interruptions = [], []
    for run in range(RUNS):
        usd, count = _one_run(needed, bucket_hours, terms, floor, random.Random(f"{seed}-{run}"))
        bills.append(usd * month)
        interruptions.append(count * month)
    return Simulated(floor, mean(bills), stdev(bills), mean(interruptions))


def _one_run(
    needed: Sequence[int], bucket_hours: float, terms: Terms, floor: int, luck: random.Random
) -> tuple[float, int]:
    """Dollars and interruptions of one passage through the traffic."""
    usd = floor * (terms.floor_usd_per_hour or 0.0) * bucket_hours * len(needed)
    start_hours = min(terms.start_s / HOUR_S, bucket_hours)
    spot, before, interrupted = terms.spot, 0, 0
    for each in needed:
        above = max(0, each - floor)
        has_spot = luck.random() < (0.0 if spot is None else spot.availability_ratio)
        has_spot &= terms.uses_spot
        draw = luck.random()
        hours = above * bucket_hours + max(0, above - before) * start_hours
        if spot is not None and has_spot:
            count = _interruptions(hours, terms, draw)
            lost_hours = count * (spot.drain_s + spot.reload_s + spot.lost_s) / HOUR_S
            usd += (hours + lost_hours) * spot.usd_per_hour
            interrupted += count
        else:
            usd += hours * terms.on_demand_usd_per_hour
        before = above
    return usd, interrupted


def _interruptions(useful_hours: float, terms: Terms, draw: float) -> int:
    """While so many useful hours are served: Poisson, by its distribution turned round. Machines
    are interrupted in the time too that they make good for."""
    spot = terms.spot
    assert spot is not None
    paid_ratio = spot.effective_usd_per_hour / spot.usd_per_hour if spot.usd_per_hour else 1.0
    expected = spot.interruptions_per_hour * useful_hours * paid_ratio
    if expected > 500:  # e^−λ would vanish; the deviation is below 5 % here
        return round(expected)
    probability = total = math.exp(-expected)
    count = 0
    while draw > total and count < 10_000:
        count += 1
        probability *= expected / count
        total += probability
    return count
