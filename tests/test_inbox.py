"""What threads leave for each other; the engine's tests have it at work."""

from __future__ import annotations

import threading
import time

import pytest

from octavo.errors import EngineDeadError
from octavo.inbox import Inbox
from octavo.ledger import StepClock
from octavo.scheduling.sequence import FinishReason
from tests.factories import make_sequence


def test_what_is_put_is_taken_once() -> None:
    inbox, sequence = Inbox(4), make_sequence(1)
    inbox.put(sequence, lambda _: None)
    inbox.cancel(7, FinishReason.CANCELLED, index=1)
    assert inbox.has_mail and inbox.request_ids == [sequence.request_id]
    arrived, cancelled = inbox.take()
    assert [each for each, _ in arrived] == [sequence]
    assert cancelled == {(7, 1): FinishReason.CANCELLED}
    assert not inbox.has_mail and inbox.num_admitted == 1
    inbox.count_end()
    assert inbox.num_admitted == 0


def test_there_is_room_again_once_a_request_has_ended() -> None:
    inbox = Inbox(1)
    assert inbox.wait_for_room(0)
    inbox.put(make_sequence(1), lambda _: None)
    assert not inbox.wait_for_room(0.01)
    threading.Timer(0.05, inbox.count_end).start()
    assert inbox.wait_for_room(10)


def test_closed_it_refuses_with_the_last_reason_and_keeps_nobody_waiting() -> None:
    inbox = Inbox(1)
    inbox.put(make_sequence(1), lambda _: None)
    inbox.close("the server is shutting down")
    assert inbox.wait_for_room(10)
    inbox.close("the engine has failed")
    with pytest.raises(EngineDeadError, match="the engine has failed"):
        inbox.put(make_sequence(1), lambda _: None)
    inbox.wait_for_work(StepClock(), lambda: False)


@pytest.mark.parametrize("act", ["put", "cancel", "close"])
def test_the_stepping_thread_is_woken_and_the_wait_is_idle_time(act: str) -> None:
    inbox, clock = Inbox(1), StepClock()
    acts = {
        "put": lambda: inbox.put(make_sequence(1), lambda _: None),
        "cancel": lambda: inbox.cancel(1, FinishReason.CANCELLED),
        "close": lambda: inbox.close("over"),
    }
    threading.Timer(0.1, acts[act]).start()
    began_s = time.perf_counter()
    inbox.wait_for_work(clock, lambda: False)
    elapsed_s = time.perf_counter() - began_s
    assert 0.05 < clock.idle_s <= elapsed_s < 5


def test_blocks_that_came_end_a_wait_for_them_once() -> None:
    inbox, clock = Inbox(1), StepClock()
    inbox.bring_blocks()
    inbox.wait_for_blocks(clock)
    assert clock.idle_s < 0.04
    inbox.wait_for_blocks(clock)  # nothing new: a poll's time
    assert clock.idle_s > 0.04
