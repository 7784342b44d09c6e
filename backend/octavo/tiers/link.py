"""One direction of the way to a tier: measured, and slowed down where that is asked for."""

import threading
import time

# Of the sums' weight when another transfer comes: the last ten or so decide.
_KEPT = 0.9


class Link:
    def __init__(self, max_bytes_per_s: int | None, stopping: threading.Event) -> None:
        self.max_bytes_per_s = max_bytes_per_s
        self._stopping = stopping
        self._bytes = 0.0
        self._seconds = 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second in transfers of late; 0 if there were none."""
        return self._bytes / self._seconds if self._seconds else 0.0

    def finish(self, started_s: float, num_bytes: int) -> float:
        """After a transfer that began at `started_s` of time.monotonic(): takes the time that the
        limit asks for. Returns the seconds that it took in all."""
        if self.max_bytes_per_s:
            wait_s = started_s + num_bytes / self.max_bytes_per_s - time.monotonic()
            if wait_s > 0:
                self._stopping.wait(wait_s)
        seconds = time.monotonic() - started_s
        if num_bytes:
            self._bytes = _KEPT * self._bytes + num_bytes
            self._seconds = _KEPT * self._seconds + max(seconds, 1e-9)
        return seconds

    def expected_s(self, num_bytes: int) -> float:
        if num_bytes == 0:
            return 0.0
        rate = self.bytes_per_s
        return num_bytes / rate if rate else float("inf")
