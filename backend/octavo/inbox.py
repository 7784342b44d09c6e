"""Where threads meet: what callers leave for the stepping thread, and what they wait for there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from octavo.errors import EngineDeadError
from octavo.generation import Sink
from octavo.ledger import StepClock
from octavo.scheduling.sequence import FinishReason, Sequence

# Sequences that wait for a tier have a deadline, which nothing else would wake the engine for.
_TIER_POLL_S = 0.05

Cancelled = dict[tuple[int, int | None], FinishReason]  # by request id and index, None for all


class Inbox:
    """Requests that arrived, those that are cancelled, how many are in hand, and whether more are
    taken. `lock` guards all of it, and the clock's idle time."""

    def __init__(self, max_num_admitted: int) -> None:
        self.lock = threading.Condition()
        self._max_num_admitted = max_num_admitted
        self._arrived: deque[tuple[Sequence, Sink]] = deque()
        self._cancelled: Cancelled = {}
        self._num_admitted = 0
        self._has_blocks = False  # from a tier
        self._closed: str | None = None  # why nothing is accepted any more

    # Any thread.

    def put(self, sequence: Sequence, sink: Sink) -> None:
        """Raises EngineDeadError once it is closed."""
        with self.lock:
            if self._closed is not None:
                raise EngineDeadError(self._closed)
            self._num_admitted += 1
            self._arrived.append((sequence, sink))
            self.lock.notify_all()

    def cancel(self, request_id: int, reason: FinishReason, index: int | None = None) -> None:
        with self.lock:
            self._cancelled[request_id, index] = reason
            self.lock.notify_all()

    def close(self, why: str) -> None:
        """What was said last is what callers are told."""
        with self.lock:
            self._closed = why
            self.lock.notify_all()

    def bring_blocks(self) -> None:
        """Blocks have come from a tier."""
        with self.lock:
            self._has_blocks = True
            self.lock.notify_all()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Also returns True once it is closed."""
        with self.lock:
            return self.lock.wait_for(
                lambda: self._num_admitted < self._max_num_admitted or self._closed is not None,
                timeout_s,
            )

    def wait_until_empty(self, timeout_s: float) -> None:
        with self.lock:
            self.lock.wait_for(lambda: self._num_admitted == 0, timeout_s)

    @property
    def closed(self) -> str | None:
        return self._closed

    @property
    def num_admitted(self) -> int:
        """Requests that were put and have not ended."""
        return self._num_admitted

    @property
    def cancelled(self) -> Cancelled:
        """What was not taken yet."""
        return self._cancelled

    @property
    def request_ids(self) -> list[int]:
        """Of requests that were not taken yet. Under the lock."""
        return [sequence.request_id for sequence, _ in self._arrived]

    @property
    def has_mail(self) -> bool:
        return bool(self._arrived or self._cancelled)

    # The stepping thread.

    def take(self) -> tuple[deque[tuple[Sequence, Sink]], Cancelled]:
        with self.lock:
            arrived, self._arrived = self._arrived, deque()
            cancelled, self._cancelled = self._cancelled, {}
        return arrived, cancelled

    def count_end(self) -> None:
        """Of a request, with its last sequence."""
        with self.lock:
            self._num_admitted -= 1
            self.lock.notify_all()

    def wait_for_work(self, clock: StepClock, has_work: Callable[[], bool]) -> None:
        """Until there is mail, work or an end."""

        def is_wanted() -> bool:
            return self.has_mail or has_work() or self._closed is not None

        with self.lock:
            if not is_wanted():
                self._idle(clock, is_wanted)

    def wait_for_blocks(self, clock: StepClock) -> None:
        """All that could run waits for a tier: until something comes, from there or a caller."""
        with self.lock:
            self._idle(clock, lambda: self._has_blocks or self.has_mail, _TIER_POLL_S)
            self._has_blocks = False

    def _idle(
        self, clock: StepClock, is_over: Callable[[], bool], timeout_s: float | None = None
    ) -> None:
        clock.begin_idle()
        self.lock.wait_for(is_over, timeout_s)
        clock.end_idle()
