"""Locust's user: what makes the load in a closed loop, and what stands in for it in an open one."""

from __future__ import annotations

from typing import ClassVar

import gevent
from locust import User, task
from locust.exception import StopUser

from loadtest.coordinator import Coordinator
from loadtest.settings import DEFAULT_HOST

_POLL_S = 0.2


class StreamUser(User):
    """Closed loop: sends one request after the other, over gRPC or HTTP as the run's settings
    say; as many are in flight as there are users.

    Open loop: does nothing. The session's dispatcher sends at the times of the schedule, in
    every process; how many users Locust spawns, and where, makes no difference.
    """

    host = DEFAULT_HOST
    coordinator: ClassVar[Coordinator]

    @task
    def generate(self) -> None:
        session = self.coordinator.session
        if session is None or session.finishing:
            raise StopUser
        if session.settings.is_open_loop:
            gevent.sleep(_POLL_S)
        else:
            session.send_next()
