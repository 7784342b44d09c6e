"""A seeded simulation of the hybrid contract, interruptions and all: is the floor the right one?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from octavo.planner.contracts import Terms
from octavo.planner.cost import HOUR_S, MONTH_HOURS
from octavo.planner.lulls import lulls

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


def floors_to_try(needed: Sequence[int], terms: Terms, *chosen: int) -> list[int]:
    """Those that were chosen, two on each side, none, and the peak; none alone if nothing to commit
    to has a price."""
    if terms.floor_usd_per_hour is None:
        return [0]
    peak = max(needed)
    near = (each + step for each in chosen for step in range(-2, 3))
    return sorted({0, peak, *(each for each in near if 0 <= each <= peak)})


def _of_floor(
    needed: Sequence[int], bucket_hours: float, terms: Terms, floor: int, seed: int
) -> Simulated:
    month = MONTH_HOURS / (bucket_hours * len(needed))
    floor_usd = terms.floor_usd(floor, bucket_hours * len(needed))
    above_hours = _hours_above(needed, bucket_hours, terms.start_hours, floor)
    bills, interruptions = [], []
    for run in range(RUNS):
        usd, count = _one_run(above_hours, terms, random.Random(f"{seed}-{run}"))
        bills.append((floor_usd + usd) * month)
        interruptions.append(count * month)
    return Simulated(floor, mean(bills), stdev(bills), mean(interruptions))


def _hours_above(
    needed: Sequence[int], bucket_hours: float, start_hours: float, floor: int
) -> list[float]:
    """Of machines above the floor in each stretch, with what they waited or started for it."""
    found = [max(0, each - floor) * bucket_hours for each in needed]
    for lull in lulls(needed):
        machines = max(0, lull.high - max(lull.low, floor))
        found[lull.at] += machines * lull.waiting_hours(bucket_hours, start_hours)
    return found


def _one_run(above_hours: Sequence[float], terms: Terms, luck: random.Random) -> tuple[float, int]:
    """Dollars and interruptions above the floor in one passage through the traffic."""
    usd, spot, interrupted = 0.0, terms.spot, 0
    for hours in above_hours:
        has_spot = luck.random() < (0.0 if spot is None else spot.availability_ratio)
        has_spot &= terms.uses_spot
        draw = luck.random()
        if spot is not None and has_spot:
            count = _interruptions(hours, terms, draw)
            lost_hours = count * (spot.drain_s + spot.reload_s + spot.lost_s) / HOUR_S
            usd += (hours + lost_hours) * spot.usd_per_hour
            interrupted += count
        else:
            usd += hours * terms.on_demand_usd_per_hour
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
