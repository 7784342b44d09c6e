"""How a sender paces itself: it rests, gathers what comes, and hurries for the ends of a stream."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.execution.sampler import SampledTokens
from octavo.scheduling.sequence import StepPlan
from tests.serving.harness import GREEDY, Request, Served, StepGate, request, wait_until

Serve = Callable[..., Served]

SEND_S = 0.02
NUM_TOKENS = 50


def slow_stream(max_tokens: int = NUM_TOKENS) -> tuple[Request, list[float]]:
    """A stream each of whose sends takes SEND_S, and when they began."""
    asked = request("A", stream=True, sampling={**GREEDY, "max_tokens": max_tokens})
    began_s: list[float] = []

    def send_slowly() -> None:
        began_s.append(time.monotonic())
        time.sleep(SEND_S)

    asked.sender.on_send = send_slowly
    return asked, began_s


def slow_steps(served: Served, step_s: float) -> None:
    run: Any = served.engine.runner.run

    def slowly(plan: StepPlan) -> SampledTokens:
        time.sleep(step_s)
        return run(plan)  # type: ignore[no-any-return]

    served.engine.runner.run = slowly  # type: ignore[method-assign]


def test_sender_rests_and_sends_what_has_gathered(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, sender_duty_cycle=0.1)
    slow_steps(served, 0.02)
    streams = [slow_stream(), slow_stream()]
    served.execute(*(asked for asked, _ in streams))
    for asked, began_s in streams:
        assert len(asked.wait().text) == NUM_TOKENS
        gaps_s = [later - earlier for earlier, later in itertools.pairwise(began_s)]
        assert len(gaps_s) >= 3  # a second of steps
        assert min(gaps_s[1:-1]) >= SEND_S / 0.1  # the first and the last are not held back


def test_sender_that_rests_hurries_for_first_and_last_outputs(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, sender_duty_cycle=SEND_S / 60)  # a send, then a minute's rest
    slow_steps(served, 0.02)
    streams = [slow_stream(), slow_stream()]
    served.execute(*(asked for asked, _ in streams))
    wait_until(lambda: all(began_s for _, began_s in streams))
    neighbour, neighbour_began_s = slow_stream(max_tokens=10)
    served.execute(neighbour)
    wait_until(lambda: neighbour_began_s)
    assert not any(asked.sender.finished.is_set() for asked, _ in streams)
    assert len(neighbour.wait(20).text) == 10
    assert all(len(asked.wait(20).text) == NUM_TOKENS for asked, _ in streams)
    assert len(neighbour_began_s) <= 3


def test_lone_stream_does_not_wait_for_the_sender(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, sender_duty_cycle=SEND_S / 60)
    slow_steps(served, 2 * SEND_S)
    asked, began_s = slow_stream(max_tokens=20)
    served.execute(asked)
    assert len(asked.wait(20).text) == 20
    assert len(began_s) >= 15


def test_sender_that_never_rests_sends_each_step(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, sender_duty_cycle=1)
    gate = StepGate(served)
    asked, began_s = slow_stream(max_tokens=6)
    served.execute(asked)
    for step in range(6):
        gate.wait()
        assert len(began_s) == step
        gate.let_through()
        wait_until(lambda step=step: len(began_s) == step + 1)  # type: ignore[misc]
    assert len(asked.wait().text) == 6
