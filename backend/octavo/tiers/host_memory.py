"""Blocks in memory of this process."""

import threading
import zlib
from collections import OrderedDict

from octavo.tiers.envelope import Keys, Row
from octavo.tiers.tier import MoveDown
from octavo.tiers.tier_stats import TierStats


class HostMemory:
    """Copies of rows with their checksums; the one used least recently goes first."""

    name = "host"
    outlives_engine = False
    is_shared = False

    def __init__(self, capacity_bytes: int, block_bytes: int, stats: TierStats) -> None:
        self.capacity_bytes = capacity_bytes
        self.capacity_blocks = capacity_bytes // block_bytes
        self._block_bytes = block_bytes
        self._stats = stats
        self._lock = threading.Lock()
        self._rows: OrderedDict[bytes, tuple[Row, int]] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        return len(self._rows) * self._block_bytes

    @property
    def room_blocks(self) -> int:
        return self.capacity_blocks - len(self._rows)

    def open(self) -> None:
        pass

    def close(self) -> None:
        self._rows.clear()

    def holds(self, key: bytes) -> bool:
        return key in self._rows

    def read(self, keys: Keys) -> list[Row]:
        rows: list[Row] = []
        for key in keys:
            found = self._rows.get(key)
            if found is None:
                break
            row, checksum = found
            if zlib.crc32(row.data) != checksum:
                self._stats.count_error("corrupt")
                self.remove([key])
                break
            rows.append(row)
        return rows

    def touch(self, keys: Keys) -> None:
        with self._lock:
            for key in keys:
                if key in self._rows:
                    self._rows.move_to_end(key)

    def write(self, keys: Keys, rows: list[Row], move_down: MoveDown) -> int:
        stored = 0
        for key, row in zip(keys, rows, strict=True):
            if key in self._rows:
                self.touch([key])
                continue
            own = row.copy()  # a view would keep all rows of its store in memory
            checksum = zlib.crc32(own.data)
            if self.room_blocks == 0:
                self._evict(move_down)
            with self._lock:
                self._rows[key] = own, checksum
            stored += 1
        return stored

    def remove(self, keys: Keys) -> None:
        with self._lock:
            for key in keys:
                self._rows.pop(key, None)

    def _evict(self, move_down: MoveDown) -> None:
        with self._lock:
            key, (row, _) = next(iter(self._rows.items()))
        move_down(key, lambda: row)  # first, so that it is found in one place at any time
        self.remove([key])
        self._stats.count_evicted(1)
