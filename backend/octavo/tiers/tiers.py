"""KV blocks that leave the pool: stored, found again, and moved down from tier to tier."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from octavo.tiers.envelope import KEY_BYTES, Keys, Row
from octavo.tiers.level import Level
from octavo.tiers.queues import Reading
from octavo.tiers.tier_stats import SkipCause, TierGauges, TierStats

log = logging.getLogger(__name__)

# What fetch() itself may read from memory: the checksums of this much take about 0.1 ms.
_AT_ONCE_BYTES = 2**19


@dataclass(slots=True, eq=False)
class Fetch:
    """A beginning of `keys` on its way. Look at nothing but `is_done` until that is set."""

    keys: tuple[bytes, ...]
    rows: list[Row] = field(default_factory=list)  # shorter than keys: the rest is a miss
    sources: list[str] = field(default_factory=list)  # the tier that each row came from
    is_done: bool = False  # set last
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Nobody wants it any more; rows that are there stay."""
        self.is_cancelled = True


class Tiers:
    """Keys and bytes, each key for one content: a row of `block_bytes` bytes.

    One thread, the engine's, calls this; no call waits for I/O but flush() and close(). `keys`
    are those of a sequence in its order: of a bounded tier the later ones go first.
    """

    def __init__(
        self, levels: list[Level], *, block_bytes: int, on_arrival: Callable[[], None]
    ) -> None:
        self.block_bytes = block_bytes
        self.names = tuple(level.name for level in levels)
        self.stats: dict[str, TierStats] = {level.name: level.stats for level in levels}
        self.outlive_engine = any(level.tier.outlives_engine for level in levels)
        self._levels = levels
        self._on_arrival = on_arrival
        self._is_closing = False  # nothing more is stored
        self._is_stopping = False  # nothing more is read

    def gauges(self) -> dict[str, TierGauges]:
        return {level.name: level.gauges() for level in self._levels}

    def held(self, keys: Keys) -> int:
        """How many of the first `keys` are here, as far as is known without I/O."""
        return self._beginning(keys, is_hopeful=False)

    def may_hold(self, keys: Keys) -> int:
        """As held(), but a shared tier that works counts as holding what is not known of."""
        return self._beginning(keys, is_hopeful=True)

    def fetch(self, keys: Sequence[bytes]) -> Fetch:
        """Begins to read the longest beginning of `keys` that there is, and returns at once.

        It may be done already. Rows may be shared with a tier: they are not to be written to.
        """
        fetch = Fetch(tuple(keys))
        self._advance(fetch, 0, is_engine=True)
        return fetch

    def store(
        self, keys: list[bytes], rows: NDArray[np.uint8], *, written_through: bool = False
    ) -> None:
        """Takes over `rows`, [n, block_bytes], and returns at once. They go to the first tier that
        takes them; what that evicts moves down. `written_through`: to each that outlives the
        engine, so that others and the next start find them, and to no other."""
        assert rows.dtype == np.uint8 and rows.shape == (len(keys), self.block_bytes), rows.shape
        assert rows.flags.c_contiguous and all(len(key) == KEY_BYTES for key in keys)
        if not keys or self._is_closing:
            return
        # The first block of a sequence comes last, as the one used last.
        backward = keys[::-1], list(rows[::-1])
        if written_through:
            for level in self._levels:
                if level.tier.outlives_engine and (cause := level.put(*backward)):
                    level.stats.count_skipped(cause, len(keys))
            return
        refused: list[tuple[Level, SkipCause]] = []
        for level in self._levels:
            cause = level.put(*backward)
            if cause is None:
                return
            refused.append((level, cause))
        level, cause = refused[0]
        level.stats.count_skipped(cause, len(keys))

    def discard(self, keys: Keys) -> None:
        """Removes what is here of `keys`, in a while. What others hold of it goes too."""
        for level in self._levels:
            level.discard(keys)

    def store_s(self, num_blocks: int) -> float:
        """Expected seconds to store so many, with what waits before them; inf if none is stored."""
        writable = (level for level in self._levels if level.can_write)
        return next((level.store_s(num_blocks) for level in writable), float("inf"))

    def fetch_s(self, keys: Keys | int) -> float:
        """Expected seconds to get these back, or so many of the first tier that works, with what
        waits before them. inf if none can be read."""
        if isinstance(keys, int):
            readable = (level for level in self._levels if level.can_read)
            return next((level.fetch_s(keys) for level in readable), float("inf"))
        counts: Counter[Level] = Counter()
        for key in keys:
            found = self._find(key)
            if found is None:
                break
            level, row = found
            counts[level] += row is None
        return sum(level.fetch_s(count) for level, count in counts.items())

    def flush(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False if that took longer."""
        deadline_s = time.monotonic() + timeout_s
        while not all(level.is_idle() for level in self._levels):
            # From above to below, as blocks move.
            if not all(level.wait_idle(deadline_s) for level in self._levels):
                return False
        return True

    def close(self, timeout_s: float) -> None:
        """Finishes what is under way, in `timeout_s` at most, and ends the threads."""
        self._is_closing = True
        deadline_s = time.monotonic() + timeout_s
        if not self.flush(timeout_s):
            log.warning("KV tiers: closed after %.3g s with blocks still to be stored", timeout_s)
        self._is_stopping = True
        for level in self._levels:
            level.close(max(deadline_s, time.monotonic() + 1.0))

    def _find(self, key: bytes, first_level: int = 0) -> tuple[Level, Row | None] | None:
        """Where to get it, and the row itself if it is on its way there. Blocks move down, and are
        below before they are gone above: so one that is here is found."""
        for level in self._levels[first_level:]:
            found = level.find(key)
            if found is not False:
                return level, None if found is True else found
        last = self._levels[-1]
        can_ask = last.tier.is_shared and last.can_read and first_level < len(self._levels)
        return (last, None) if can_ask else None

    def _beginning(self, keys: Keys, *, is_hopeful: bool) -> int:
        last = self._levels[-1]
        if is_hopeful and last.tier.is_shared and last.can_read:
            return len(keys)
        for i, key in enumerate(keys):
            if all(level.find(key) is False for level in self._levels):
                return i
        return len(keys)

    def _run_length(self, keys: Keys, start: int, level: Level) -> int:
        """Of keys[start:], how many in a row are to be read from `level`; the first one is."""
        for end in range(start + 1, len(keys)):
            found = self._find(keys[end])
            if found is None or found[0] is not level or found[1] is not None:
                return end - start
        return len(keys) - start

    def _advance(self, fetch: Fetch, first_level: int, *, is_engine: bool = False) -> None:
        """Goes on with a fetch from its first missing key, which the levels above `first_level`
        turned out not to have."""
        while not self._is_over(fetch) and (position := len(fetch.rows)) < len(fetch.keys):
            found = self._find(fetch.keys[position], first_level)
            if found is None:
                break
            level, row = found
            if row is not None:
                level.stats.count_lookup(1, 0)
                fetch.rows.append(row)
                fetch.sources.append(level.name)
                first_level = 0
                continue
            count = self._run_length(fetch.keys, position, level)
            num_bytes = count * self.block_bytes
            fits = len(fetch.rows) * self.block_bytes + num_bytes <= _AT_ONCE_BYTES
            if not (level.is_instant and (fits or not is_engine)):
                read = partial(self._read_on, fetch, level, count)
                level.fetches.put(Reading(num_bytes, read, partial(self._is_over, fetch)))
                return
            first_level = 0 if self._read(fetch, level, count) else self._levels.index(level) + 1
            level.touch(fetch.keys[position : len(fetch.rows)])
        fetch.is_done = True
        if not fetch.is_cancelled:
            self._on_arrival()

    def _read_on(self, fetch: Fetch, level: Level, count: int) -> None:
        """In a fetch thread: reads a run of keys, and sends the fetch on its way."""
        start = len(fetch.rows)
        is_whole = self._read(fetch, level, count)
        read_keys = fetch.keys[start : len(fetch.rows)]
        self._advance(fetch, 0 if is_whole else self._levels.index(level) + 1)
        level.touch(read_keys)  # nobody has to wait for that

    def _read(self, fetch: Fetch, level: Level, count: int) -> bool:
        """Reads the next `count` keys of a fetch in batches; False if it ended before."""
        end = len(fetch.rows) + count
        while (position := len(fetch.rows)) < end and not self._is_over(fetch):
            keys = fetch.keys[position : min(end, position + level.batch_blocks)]
            rows = level.read(keys)
            fetch.rows += rows
            fetch.sources += [level.name] * len(rows)
            if len(rows) < len(keys):
                break
        return len(fetch.rows) == end

    def _is_over(self, fetch: Fetch) -> bool:
        return fetch.is_cancelled or self._is_stopping
