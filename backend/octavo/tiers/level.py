"""One tier with all that surrounds it: its two threads, its health, its links, its counts."""

import logging
import os
import threading
import time
from collections.abc import Callable

import numpy as np

from octavo.errors import ConfigError
from octavo.tiers.envelope import KEY_BYTES, Keys, Row
from octavo.tiers.health import Health
from octavo.tiers.link import Link
from octavo.tiers.queues import Batch, FetchQueue, StoreQueue
from octavo.tiers.tier import Tier, TierFault
from octavo.tiers.tier_stats import SkipCause, TierGauges, TierStats

log = logging.getLogger(__name__)

# What a transfer moves in one go: enough to be worth its fixed cost, so little that a cancelled
# fetch ends soon.
_BATCH_BYTES = 2**22
_MAX_BATCH_BLOCKS = 64
_PROBE_BYTES = 2**21
_MAX_PROBE_BLOCKS = 8


class Level:
    def __init__(
        self,
        tier: Tier,
        block_bytes: int,
        stats: TierStats,
        *,
        below: "Level | None",
        max_queue_bytes: int,
        link_bytes_per_s: int | None,
    ) -> None:
        self.tier = tier
        self.name = tier.name
        self.stats = stats
        self.batch_blocks = max(1, min(_MAX_BATCH_BLOCKS, _BATCH_BYTES // block_bytes))
        self._block_bytes = block_bytes
        self._below = below
        self._stopping = threading.Event()
        self._reads = Link(link_bytes_per_s, self._stopping)
        self._writes = Link(link_bytes_per_s, self._stopping)
        self._health = Health(tier.name)
        self.fetches = FetchQueue(tier.name)
        self._stores = StoreQueue(
            tier.name, max_queue_bytes, min(self.batch_blocks, tier.capacity_blocks), self._work,
            lambda: self._guarded(self._try), lambda: self._health.trial_in_s,
        )  # fmt: skip

    def open(self) -> None:
        """A tier that does not work is left for later. Raises ConfigError for another engine's."""
        if self._writes.max_bytes_per_s:
            log.warning(
                "KV tier %s is slowed down to %.6g MB/s in each direction, by %s_link_bytes_per_s",
                self.name, self._writes.max_bytes_per_s / 1e6, self.name,
            )  # fmt: skip
        try:
            self._try()
        except TierFault as fault:
            self._trip(fault)
        self.fetches.thread.start()
        self._stores.thread.start()

    def gauges(self) -> TierGauges:
        return TierGauges(
            used_bytes=self.tier.used_bytes,
            capacity_bytes=self.tier.capacity_bytes,
            queued_bytes=self._stores.queued_bytes,
            is_up=self._health.is_up,
            read_bytes_per_s=self._reads.bytes_per_s,
            write_bytes_per_s=self._writes.bytes_per_s,
        )

    @property
    def can_read(self) -> bool:
        return self._health.can_read

    @property
    def can_write(self) -> bool:
        return self._health.can_write

    @property
    def is_instant(self) -> bool:
        """Whether a few blocks can be read without waiting for anything."""
        return self.name == "host" and self._reads.max_bytes_per_s is None

    def find(self, key: bytes) -> Row | bool:
        """The row if it is on its way here; else whether the tier has it and can be read."""
        waiting = self._stores.find(key)
        if waiting is not None:
            return waiting
        return self._health.can_read and self.tier.holds(key)

    def put(self, keys: Keys, rows: list[Row]) -> SkipCause | None:
        """Takes blocks to store them, the last one used last; None, or why it does not."""
        if not self._health.can_write:
            return "down"
        return None if self._stores.put(keys, rows) else "queue_full"

    def discard(self, keys: Keys) -> None:
        gone = [key for key in keys if self._stores.find(key) is not None or self.tier.holds(key)]
        if gone:
            self._stores.put_removals(gone)

    def read(self, keys: Keys) -> list[Row]:
        """The longest beginning, counted; none if the tier does not work. In one thread alone,
        but for an instant tier."""
        rows: list[Row] = []
        if self._health.can_read:
            started_s = time.monotonic()
            self._guarded(lambda: rows.extend(self.tier.read(keys)))
            num_bytes = len(rows) * self._block_bytes
            seconds = self._reads.finish(started_s, num_bytes)
            self.stats.count_fetched(len(rows), num_bytes, seconds)
        self.stats.count_lookup(len(rows), len(keys) - len(rows))
        return rows

    def touch(self, keys: Keys) -> None:
        """`keys` of a sequence have been used: its first block is of the most use."""
        if keys and self._health.can_read:
            self._guarded(lambda: self.tier.touch(keys[::-1]))

    def store_s(self, num_blocks: int) -> float:
        return self._writes.expected_s(num_blocks * self._block_bytes + self._stores.queued_bytes)

    def fetch_s(self, num_blocks: int) -> float:
        return self._reads.expected_s(num_blocks * self._block_bytes + self.fetches.queued_bytes)

    def wait_idle(self, deadline_s: float) -> bool:
        return self._stores.wait_idle(deadline_s) and self.fetches.wait_idle(deadline_s)

    def is_idle(self) -> bool:
        return self.wait_idle(0.0)

    def close(self, deadline_s: float) -> None:
        """Ends both threads; what still waits is dropped, a transfer in hand is waited for."""
        self._stopping.set()
        self._stores.close()
        self.fetches.close()
        for thread in (self._stores.thread, self.fetches.thread):
            if thread.ident is not None:
                thread.join(max(0.0, deadline_s - time.monotonic()))
                if thread.is_alive():
                    log.error("KV tier %s: thread %s has not ended", self.name, thread.name)
        self.tier.close()

    # In the store thread.

    def _work(self, batch: Batch) -> None:
        removed = [key for key, row in batch if row is None]
        if removed:
            self._guarded(lambda: self.tier.remove(removed))
        stored = [(key, row) for key, row in batch if row is not None]
        if stored:
            self._guarded(lambda: self._write([k for k, _ in stored], [r for _, r in stored]))

    def _write(self, keys: list[bytes], rows: list[Row]) -> None:
        if not self._health.can_write:
            self.stats.count_skipped("down", len(keys))
            return
        started_s = time.monotonic()
        try:
            stored = self.tier.write(keys, rows, self._move_down)
        except TierFault as fault:
            stored = fault.num_stored
            self._trip(fault)
            self.stats.count_skipped("fault", len(keys) - stored)
        num_bytes = stored * self._block_bytes
        self.stats.count_stored(stored, num_bytes, self._writes.finish(started_s, num_bytes))

    def _move_down(self, key: bytes, load: Callable[[], Row | None]) -> None:
        below = self._below
        while below is not None and not below.can_write:
            below = below._below
        if below is None or (below.tier.is_shared and below.tier.holds(key)):
            return
        row = load()
        if row is not None and (cause := below.put([key], [row])):
            below.stats.count_skipped(cause, 1)

    def _try(self) -> None:
        """Raises TierFault, ConfigError."""
        self.tier.open()
        self._probe()
        self._health.restore()

    def _probe(self) -> None:
        """Writes, reads and removes a few blocks, which also seeds the rates. Raises TierFault."""
        count = min(_MAX_PROBE_BLOCKS, _PROBE_BYTES // self._block_bytes, self.tier.room_blocks)
        keys = [os.urandom(KEY_BYTES) for _ in range(max(1, count))]
        rows = [np.frombuffer(os.urandom(self._block_bytes), np.uint8) for _ in keys]
        started_s = time.monotonic()
        try:
            stored = self.tier.write(keys, rows, self._move_down)
            self._writes.finish(started_s, stored * self._block_bytes)
            started_s = time.monotonic()
            read = self.tier.read(keys)
            self._reads.finish(started_s, len(read) * self._block_bytes)
        finally:
            self.tier.remove(keys)
        if len(read) < len(rows):
            raise TierFault("io", "blocks written as a trial could not be read back")
        assert all(np.array_equal(a, b) for a, b in zip(rows, read, strict=True))

    # In any thread.

    def _guarded(self, act: Callable[[], None]) -> None:
        """A thread outlives every fault: whoever waits for it would wait for ever."""
        try:
            act()
        except TierFault as fault:
            self._trip(fault)
        except ConfigError as exc:  # another engine has taken the place meanwhile
            self._trip(TierFault("refused", str(exc)))
        except Exception as exc:
            log.exception("KV tier %s", self.name)
            self._trip(TierFault("io", f"unexpected {type(exc).__name__}"))

    def _trip(self, fault: TierFault) -> None:
        self.stats.count_error(fault.kind)
        self._health.trip(fault)
        self._stores.wake()
