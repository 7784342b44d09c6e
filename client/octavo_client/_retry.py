"""Opt-in retries, and the deadline that bounds them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ._errors import OctavoError, RejectedError, RequestTimeoutError, UnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Try again when the server rejects a request or cannot be reached, before the first token.

    The pause before attempt n is drawn evenly from 0 to `backoff_s * 2**(n - 2)` seconds, at most
    `max_backoff_s` ("full jitter": clients that were rejected together do not come back
    together). Once a token has arrived nothing is retried. A pause that the call's `timeout`
    does not allow is not taken: the error is raised.
    """

    attempts: int = 3
    """In all, the first one included."""
    backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    random: Callable[[], float] = field(default=random.random, repr=False)
    """A number from 0 to 1."""
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    async_sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; must be at least 1")
        if self.backoff_s < 0 or self.max_backoff_s < 0:
            raise ValueError("backoff_s and max_backoff_s must not be negative")


NO_RETRY = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point of the monotonic clock, in seconds, or None for no limit."""

    at: float | None

    @classmethod
    def after(cls, timeout: float | None) -> Deadline:
        """`timeout` seconds from now."""
        return cls(None if timeout is None else time.monotonic() + timeout)

    def remaining(self) -> float | None:
        """Seconds left; raises RequestTimeoutError when there are none."""
        if self.at is None:
            return None
        left = self.at - time.monotonic()
        if left <= 0:
            raise RequestTimeoutError("the timeout passed before the request could be sent")
        return left


def pause_before_retry(
    retry: Retry, error: OctavoError, *, attempt: int, started: bool, deadline: Deadline
) -> float | None:
    """Seconds to wait before the attempt after this one, or None to give up.

    `attempt` counts from 1; `started` says whether a token has arrived.
    """
    retryable = isinstance(error, (RejectedError, UnavailableError))
    if started or not retryable or attempt >= retry.attempts:
        return None
    pause = retry.random() * min(retry.max_backoff_s, retry.backoff_s * 2.0 ** (attempt - 1))
    if deadline.at is not None and time.monotonic() + pause >= deadline.at:
        return None
    return pause
