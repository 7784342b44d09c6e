"""What waits for a tier's two threads: one writes and removes, one reads."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from octavo.tiers.envelope import Keys, Row

log = logging.getLogger(__name__)

Batch = list[tuple[bytes, Row | None]]


class StoreQueue:
    """Blocks on their way into a tier, found by key until they are there.

    A key stands for the last thing that was asked for it: its row is to be stored, or (None) what
    the tier has is to be removed. `work` gets a batch at a time, `trial` is called when it is due;
    neither raises.
    """

    def __init__(
        self,
        name: str,
        max_bytes: int,
        batch_blocks: int,
        work: Callable[[Batch], None],
        trial: Callable[[], None],
        trial_in_s: Callable[[], float | None],
    ) -> None:
        self.queued_bytes = 0
        self._max_bytes = max_bytes
        self._batch_blocks = batch_blocks
        self._work = work
        self._trial = trial
        self._trial_in_s = trial_in_s
        self._pending: OrderedDict[bytes, Row | None] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closing = False
        self.thread = threading.Thread(target=self._run, name=f"octavo-kv-{name}-w", daemon=True)

    def find(self, key: bytes) -> Row | bool | None:
        """The row that waits; False if the key is to be removed, None if nothing waits for it."""
        row = self._pending.get(key, True)
        return None if row is True else False if row is None else row

    def put(self, keys: Keys, rows: list[Row]) -> bool:
        """False if there is no room. An empty queue takes any number, so that its bound can be
        smaller than one store."""
        with self._changed:
            new = {
                key: row
                for key, row in zip(keys, rows, strict=True)
                if self._pending.get(key) is None
            }
            num_bytes = sum(row.nbytes for row in new.values())
            if self.queued_bytes and self.queued_bytes + num_bytes > self._max_bytes:
                return False
            self.queued_bytes += num_bytes
            for key in new:
                self._pending.pop(key, None)  # a removal, which stands before it
            self._pending.update(new)
            self._changed.notify_all()
            return True

    def put_removals(self, keys: Keys) -> None:
        with self._changed:
            for key in keys:
                row = self._pending.pop(key, None)
                self.queued_bytes -= row.nbytes if row is not None else 0
                self._pending[key] = None
            self._changed.notify_all()

    def wake(self) -> None:
        """The time of the next trial has changed."""
        with self._changed:
            self._changed.notify_all()

    def wait_idle(self, deadline_s: float) -> bool:
        with self._changed:
            timeout_s = max(0.0, deadline_s - time.monotonic())
            return self._changed.wait_for(lambda: not self._pending, timeout_s)

    def close(self) -> None:
        """The batch in hand is the last."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._pending or self._is_closing or self._trial_in_s() == 0):
                    self._changed.wait(self._trial_in_s())
                if self._is_closing:
                    return
                batch = list(islice(self._pending.items(), self._batch_blocks))
            if self._trial_in_s() == 0:
                self._trial()
            if batch:
                self._work(batch)
                self._finish(batch)
                batch.clear()  # while this thread waits, it keeps no rows in memory

    def _finish(self, batch: Batch) -> None:
        with self._changed:
            for key, row in batch:
                # Another row, or a removal, may have been asked for meanwhile.
                if key in self._pending and self._pending[key] is row:
                    del self._pending[key]
                    self.queued_bytes -= row.nbytes if row is not None else 0
            self._changed.notify_all()


@dataclass(slots=True)
class Reading:
    """Part of a fetch: `num_bytes` at most."""

    num_bytes: int
    read: Callable[[], None]
    is_cancelled: Callable[[], bool]


class FetchQueue:
    """Readings that wait for one tier, in the order in which they were asked for."""

    def __init__(self, name: str) -> None:
        self._waiting: deque[Reading] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self.thread = threading.Thread(target=self._run, name=f"octavo-kv-{name}-r", daemon=True)

    @property
    def queued_bytes(self) -> int:
        with self._changed:
            return sum(each.num_bytes for each in self._waiting if not each.is_cancelled())

    def put(self, reading: Reading) -> None:
        with self._changed:
            if not self._is_closing:
                self._waiting.append(reading)
                self._changed.notify_all()
                return
        reading.read()  # which ends it, as nothing is read any more

    def wait_idle(self, deadline_s: float) -> bool:
        with self._changed:
            timeout_s = max(0.0, deadline_s - time.monotonic())
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self) -> None:
        """What waits is finished first."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                reading = self._waiting[0]
            try:
                reading.read()
            except Exception:  # of whoever was told; the thread must go on
                log.exception("a fetch of KV blocks failed")
            del reading
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()
