"""The open loop: sends every request at its time, whatever has become of those before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import gevent
from gevent.pool import Group

# gevent's timers count in whole milliseconds and fire up to one late, later still on busy cores:
# the last part of a wait is spent turning the loop, so that the process is awake when it is due.
_AWAKE_S = 0.003

T = TypeVar("T")


def dispatch(
    arrivals: Iterable[tuple[int, int]],
    *,
    start_ns: int,
    in_flight: Group,
    max_in_flight: int,
    prepare: Callable[[int], T],
    send: Callable[[T, int], None],
    drop: Callable[[T, int], None],
) -> None:
    """For each (request number, nanoseconds after `start_ns`) spawns `send` into `in_flight`,
    with what `prepare` has made of the number during the wait, and the nanoseconds.

    Never waits for an answer. An arrival that meets `max_in_flight` requests goes to `drop` and
    is not sent later: a request that waits here would make the loop a closed one, unseen.
    """
    for index, intended_ns in arrivals:
        prepared = prepare(index)
        _sleep_until(start_ns + intended_ns)
        if len(in_flight) >= max_in_flight:
            drop(prepared, intended_ns)
        else:
            in_flight.spawn(send, prepared, intended_ns)
            gevent.sleep(0)  # it goes before the next one is prepared


def _sleep_until(due_ns: int) -> None:
    wait_s = (due_ns - time.perf_counter_ns()) / 1e9
    if wait_s > _AWAKE_S:
        gevent.sleep(wait_s - _AWAKE_S)
    while time.perf_counter_ns() < due_ns:
        gevent.sleep(0)
