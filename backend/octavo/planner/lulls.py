"""Machines above a floor: how many hours each is paid for.

The first machine is needed the longest, the last one at the peak only. Between two times in which
it is needed a machine either stays and idles or is stopped and started again, whichever is less
time: so a lull never costs more than a start, and more traffic never costs less. The end is
followed by the beginning, as traffic stands for a month of the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Alike:
    """Machines that are paid for the same hours."""

    machines: int
    hours: float


@dataclass(frozen=True, slots=True)
class Lull:
    """Before stretch `at` machines low + 1 to high are not needed for `stretches` of them."""

    at: int
    low: int
    high: int
    stretches: int

    def waiting_hours(self, bucket_hours: float, start_hours: float) -> float:
        """Of one machine: idle through it, or until it has started."""
        return min(self.stretches * bucket_hours, start_hours)


def lulls(needed: Sequence[int]) -> Iterator[Lull]:
    # From the peak on, where every machine is at work, to the peak again.
    peak = max(range(len(needed)), key=lambda at: needed[at])
    last = [(needed[peak], 0)]  # falling numbers of machines, and when so many were last needed
    for step in range(1, len(needed) + 1):
        at = (peak + step) % len(needed)
        low = 0
        while low < needed[at]:
            machines, when = last[-1]
            high = min(machines, needed[at])
            if high > low and step - when > 1:
                yield Lull(at, low, high, step - when - 1)
            low = max(low, high)
            if machines <= needed[at]:
                last.pop()
        last.append((needed[at], step))


def paid_hours(needed: Sequence[int], bucket_hours: float, start_hours: float) -> list[Alike]:
    """From the machine that is needed the longest to the last; hours never rise."""
    # What changes above so many machines: stretches paid for, and starts.
    stretches: defaultdict[int, int] = defaultdict(int)
    starts: defaultdict[int, int] = defaultdict(int)
    for each in needed:
        stretches[0] += 1
        stretches[each] -= 1
    for lull in lulls(needed):
        kept = lull.stretches * bucket_hours <= start_hours
        changed, by = (stretches, lull.stretches) if kept else (starts, 1)
        changed[lull.low] += by
        changed[lull.high] -= by
    found, stretch_count, start_count = [], 0, 0
    steps = sorted({*stretches, *starts})
    for low, high in pairwise(steps):
        stretch_count += stretches[low]
        start_count += starts[low]
        hours = stretch_count * bucket_hours + start_count * start_hours
        found.append(Alike(high - low, hours))
    return found


def hours_above(paid: Sequence[Alike], floor: int) -> float:
    """Of all machines but the first `floor`."""
    total, before = 0.0, 0
    for each in paid:
        total += max(0, each.machines - max(0, floor - before)) * each.hours
        before += each.machines
    return total
