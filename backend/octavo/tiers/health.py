"""Whether a tier works: after a fault it is left alone, and tried again after 1, 2, 4 … 30 s."""

import logging
import threading
import time

from octavo.tiers.tier import TierFault

log = logging.getLogger(__name__)

_FIRST_TRIAL_S = 1.0
_MAX_TRIAL_S = 30.0


class Health:
    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._delay_s = _FIRST_TRIAL_S
        self._trial_at_s: float | None = None  # None: nothing to try, all works
        self._up_since_s = float("-inf")
        self.can_read = True
        self.can_write = True

    @property
    def is_up(self) -> bool:
        return self.can_read and self.can_write

    @property
    def trial_in_s(self) -> float | None:
        at_s = self._trial_at_s
        return None if at_s is None else max(0.0, at_s - time.monotonic())

    def trip(self, fault: TierFault) -> None:
        now_s = time.monotonic()
        with self._lock:
            was_up = self.is_up
            is_new = self.can_write if fault.writes_only else self.can_read
            self.can_write = False
            self.can_read = self.can_read and fault.writes_only
            # A trial to come means that the other thread has met it too.
            if self._trial_at_s is None or self._trial_at_s <= now_s:
                # What fails as soon as it is used again is tried less and less often.
                has_lasted = was_up and now_s - self._up_since_s > _MAX_TRIAL_S
                self._delay_s = (
                    _FIRST_TRIAL_S if has_lasted else min(2 * self._delay_s, _MAX_TRIAL_S)
                )
                self._trial_at_s = now_s + self._delay_s
        if is_new:
            log.error(
                "KV tier %s: %s (%s); %s until it works again, tried within %d s at most",
                self._name, fault, fault.kind,
                "not written to" if fault.writes_only else "not used", _MAX_TRIAL_S,
            )  # fmt: skip

    def restore(self) -> None:
        with self._lock:
            was_down = not self.is_up
            self.can_read = self.can_write = True
            self._trial_at_s = None
            self._up_since_s = time.monotonic()
        if was_down:
            log.warning("KV tier %s works again", self._name)
