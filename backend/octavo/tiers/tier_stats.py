"""Counts of one tier. Any thread may write."""

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal

SkipCause = Literal["queue_full", "down", "fault"]


class TierStats:
    """A hit is a block that was asked for and given back, from the tier or its queue; all others
    that were asked of this tier are misses. A block counts as fetched when it was read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.stored_blocks = 0
        self.stored_bytes = 0
        self.store_s = 0.0
        self.fetched_blocks = 0
        self.fetched_bytes = 0
        self.fetch_s = 0.0
        self.hits = 0
        self.misses = 0
        self.evicted_blocks = 0  # for the bound; most of them have moved down
        self.skipped_blocks: Counter[str] = Counter()  # not stored, by SkipCause
        self.errors: Counter[str] = Counter()  # by FaultKind

    def count_stored(self, blocks: int, num_bytes: int, seconds: float) -> None:
        with self._lock:
            self.stored_blocks += blocks
            self.stored_bytes += num_bytes
            self.store_s += seconds

    def count_fetched(self, blocks: int, num_bytes: int, seconds: float) -> None:
        with self._lock:
            self.fetched_blocks += blocks
            self.fetched_bytes += num_bytes
            self.fetch_s += seconds

    def count_lookup(self, hits: int, misses: int) -> None:
        with self._lock:
            self.hits += hits
            self.misses += misses

    def count_evicted(self, blocks: int) -> None:
        with self._lock:
            self.evicted_blocks += blocks

    def count_skipped(self, cause: SkipCause, blocks: int) -> None:
        with self._lock:
            self.skipped_blocks[cause] += blocks

    def count_error(self, kind: str) -> None:
        with self._lock:
            self.errors[kind] += 1


@dataclass(frozen=True, slots=True)
class TierGauges:
    """The state now. A rate is 0 until something was moved."""

    used_bytes: int
    capacity_bytes: int
    queued_bytes: int  # on their way into the tier
    is_up: bool  # can be read and written
    read_bytes_per_s: float
    write_bytes_per_s: float
