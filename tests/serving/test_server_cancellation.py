"""Clients that leave and deadlines that pass, wherever the request is at that moment."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.serving import responder
from tests.serving.checkpoints import SCRIPT
from tests.serving.harness import (
    GREEDY,
    Request,
    Served,
    StepGate,
    all_flags,
    request,
    wait_until,
)

Serve = Callable[..., Served]

CANCELLED = ("CANCELLED", "Request was cancelled")
LONG = {**GREEDY, "max_tokens": 200}
# A prompt of 41 tokens in chunks of 8.
CHUNKED = {"max_num_seqs": 2, "max_num_batched_tokens": 8}


def cancel(served: Served, asked: Request) -> None:
    """The client leaves; returns when the engine has been told."""
    asked.sender.cancelled = True
    wait_until(lambda: bool(served.engine._inbox.cancelled))


def assert_ended_within_a_step(served: Served, asked: Request, gate: StepGate) -> None:
    """The engine stands before a step: after this one the request has ended."""
    used, steps = served.num_used_blocks, served.engine.stats.steps
    assert used > 0 and not asked.sender.finished.is_set()
    gate.let_through()
    assert asked.wait().error == CANCELLED
    wait_until(lambda: served.num_used_blocks < used)
    assert served.engine.stats.steps == steps + 1


def test_server_ends_a_cancelled_request_in_decode(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    gate = StepGate(served)
    asked = request("A", stream=True, sampling=LONG)
    served.execute(asked)
    for _ in range(4):
        gate.wait()
        gate.let_through()
    gate.wait()
    cancel(served, asked)
    assert_ended_within_a_step(served, asked, gate)
    texts = [r.output_tensors()[0].as_numpy().item() for r in asked.sender.responses[:-1]]
    assert SCRIPT.encode().startswith(b"".join(texts)) and b"".join(texts).startswith(b"BCDE")


def test_server_ends_a_cancelled_request_in_prefill(serve: Serve, random_folder: Path) -> None:
    served = serve(random_folder, **CHUNKED)
    gate = StepGate(served)
    asked = request("Z" * 40, sampling=LONG)
    served.execute(asked)
    gate.wait()
    gate.let_through()
    gate.wait()
    cancel(served, asked)
    assert_ended_within_a_step(served, asked, gate)
    assert served.engine.stats.generation_tokens == 0
    assert len(asked.sender.responses) == 1


def test_server_ends_a_cancelled_request_that_waits(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=2)
    gate = StepGate(served)
    running = request("A", sampling=GREEDY)
    waiting = request("A", sampling=GREEDY)
    served.execute(running, waiting)
    gate.wait()
    cancel(served, waiting)
    assert [each.request_id for each in served.engine.scheduler.running] != []
    gate.let_through()
    assert waiting.wait().error == CANCELLED
    assert not running.sender.finished.is_set()
    gate.open()
    assert running.wait().text == "ABCDEFGHIJKLMNOPQ"
    assert served.engine.stats.prompt_tokens == 2  # of the other one alone


def test_server_ends_a_cancelled_request_that_waits_to_be_admitted(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=0)
    gate = StepGate(served)
    running, patient, leaving = (request("A", sampling=GREEDY) for _ in range(3))
    thread = served.execute_aside(running, patient, leaving)
    gate.wait()
    leaving.sender.cancelled = True
    assert leaving.wait().error == CANCELLED
    assert not running.sender.finished.is_set() and not patient.sender.finished.is_set()
    gate.open()
    thread.join()
    assert running.wait().text == patient.wait().text == "ABCDEFGHIJKLMNOPQ"
    assert served.stats.finished == {"length": 2, "cancelled": 1}


def test_server_asks_about_live_requests_only(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    gate = StepGate(served)
    asked = request("A", sampling=GREEDY)
    served.execute(asked)
    wait_until(lambda: asked.sender.num_cancel_polls >= 2)
    (reply,) = served.model._responder._live.values()
    gate.open()
    asked.wait()
    assert not reply.is_cancelled()  # as the poller may ask that was on its way
    polls = asked.sender.num_cancel_polls
    wait_until(lambda: not served.model._responder._live)
    time.sleep(2 * responder.CANCEL_POLL_S)
    assert asked.sender.num_cancel_polls == polls


def test_server_sends_no_text_once_the_client_has_left(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    gate = StepGate(served)
    asked = request("A", stream=True, sampling=GREEDY)
    served.execute(asked)
    gate.wait()
    (reply,) = served.model._responder._live.values()
    push = reply._choices[0]._detokenizer.push

    def leave_and_push(token_id: int) -> str:
        asked.sender.cancelled = True
        assert reply.is_cancelled() or asked.sender.finished.is_set()
        return push(token_id)

    reply._choices[0]._detokenizer.push = leave_and_push
    gate.open()
    assert asked.wait().error == CANCELLED
    assert len(asked.sender.responses) == 1


def test_server_answers_who_has_left_when_it_is_finalized(
    serve: Serve, scripted_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responder, "CANCEL_POLL_S", 3600)  # finalize comes before the poller
    served = serve(scripted_folder)
    gate = StepGate(served)
    asked = request("A", sampling=GREEDY)
    served.execute(asked)
    gate.wait()
    (reply,) = served.model._responder._live.values()
    asked.sender.cancelled = True
    assert reply.is_cancelled()
    time.sleep(0.02)
    gate.open()
    served.finalize()
    assert asked.sender.finished.is_set()
    assert asked.error == CANCELLED


def test_server_answers_once_when_clients_leave_at_any_moment(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, max_num_seqs=4, max_num_waiting=2, max_num_batched_tokens=16)
    moments = random.Random(0)
    every = [
        request("A" * moments.randint(1, 30), stream=bool(i % 2), sampling={**LONG, "stop": "~A"})
        for i in range(40)
    ]
    for each in every[::3]:
        countdown = iter(range(moments.randint(0, 3), -1, -1))
        each.sender.on_is_cancelled = lambda e=each, c=countdown: setattr(
            e.sender, "cancelled", next(c, 0) == 0
        )
    served.execute(*every)
    errors = [each.wait().error for each in every]
    assert set(errors) <= {None, CANCELLED}
    assert all(error is None for index, error in enumerate(errors) if index % 3)
    assert errors.count(CANCELLED) > 0


def jump_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now_s() + 3600)


@pytest.mark.parametrize("where", ["decode", "prefill", "waiting"])
def test_server_ends_a_request_at_its_deadline(
    serve: Serve, random_folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    served = serve(random_folder, max_num_seqs=1, max_num_waiting=2, max_num_batched_tokens=8)
    gate = StepGate(served)
    prompt = "Z" * (40 if where == "prefill" else 2)
    late = request(prompt, sampling={**LONG, "deadline_ms": 60_000})
    others = [request("Z", sampling={**GREEDY, "priority": 1})] if where == "waiting" else []
    served.execute(*others, late)
    gate.wait()
    gate.let_through()
    gate.wait()
    assert not late.sender.finished.is_set()
    jump_an_hour(monkeypatch)
    gate.open()
    assert late.wait().error == ("UNAVAILABLE", "Request timeout expired: deadline_ms = 60000")
    if not others:
        assert served.engine.stats.steps == 2  # the one held, and none after it
    assert [each.wait().error for each in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ({"sampling": {**GREEDY, "deadline_ms": 60_000}}, "60 s"),
        ({"sampling": GREEDY, "timeout_us": 50_000_000}, "50 s"),
        ({"sampling": {**GREEDY, "deadline_ms": 10**7}, "timeout_us": 50_500_000}, "50.5 s"),
    ],
)
def test_server_ends_a_request_at_its_deadline_before_it_is_admitted(
    serve: Serve,
    scripted_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, object],
    shown: str,
) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=0)
    gate = StepGate(served)
    running, late = request("A", sampling=GREEDY), request("A", **limits)
    thread = served.execute_aside(running, late)
    wait_until(lambda: late.sender.num_cancel_polls > 1)
    assert not late.sender.finished.is_set()
    jump_an_hour(monkeypatch)
    assert late.wait().error == ("UNAVAILABLE", f"Request timeout expired: {shown}")
    gate.open()
    thread.join()
    assert running.wait().text == "ABCDEFGHIJKLMNOPQ"


def test_server_meets_a_deadline_that_is_far(scripted: Served) -> None:
    asked = scripted.ask("A", sampling={**GREEDY, "deadline_ms": 60_000}, **all_flags())
    assert asked.text == "ABCDEFGHIJKLMNOPQ"
