"""The open loop: on time whatever becomes of the requests, and never silently late."""

from __future__ import annotations

import time

import gevent
from gevent.pool import Group

from loadtest.dispatcher import dispatch

MS = 1_000_000


class Server:
    """Answers nothing; notes what was sent, and when."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, float]] = []
        self.dropped: list[tuple[str, int]] = []
        self.in_flight = Group()
        self.start_ns = time.perf_counter_ns()

    def dispatch(self, times_ms: list[int], max_in_flight: int = 100) -> None:
        dispatch(
            [(index, at * MS) for index, at in enumerate(times_ms)],
            start_ns=self.start_ns,
            in_flight=self.in_flight,
            max_in_flight=max_in_flight,
            prepare=str,
            send=self.send,
            drop=lambda prepared, intended_ns: self.dropped.append((prepared, intended_ns)),
        )
        gevent.sleep(0)
        self.in_flight.kill()

    def send(self, prepared: str, intended_ns: int) -> None:
        self.sent.append((prepared, (time.perf_counter_ns() - self.start_ns - intended_ns) / MS))
        gevent.sleep(60)


def test_sends_on_time_without_waiting_for_answers() -> None:
    server = Server()
    server.dispatch([0, 10, 20, 60, 61, 100])
    assert [prepared for prepared, _ in server.sent] == ["0", "1", "2", "3", "4", "5"]
    lags_ms = sorted(lag for _, lag in server.sent)
    assert lags_ms[0] >= 0
    assert lags_ms[2] < 10  # the median: a busy machine may delay some
    assert server.dropped == []


def test_an_arrival_over_the_cap_is_dropped_and_not_delayed() -> None:
    server = Server()
    server.dispatch([0, 10, 20, 30], max_in_flight=2)
    assert [prepared for prepared, _ in server.sent] == ["0", "1"]
    assert server.dropped == [("2", 20 * MS), ("3", 30 * MS)]


def test_a_late_start_sends_all_at_once_and_shows_the_lag() -> None:
    server = Server()
    server.start_ns -= 500 * MS
    server.dispatch([0, 100, 200])
    assert len(server.sent) == 3
    assert all(lag > 250 for _, lag in server.sent)
