"""The engine with its own thread: draining, faults, waiting for room."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import Recorder, generate_checked, greedy, make_engine, random_prompts, submit
from octavo.engine import Engine
from octavo.errors import EngineDeadError
from octavo.execution.sampler import SampledTokens
from octavo.generation import GenerationRequest, TokenOutput
from octavo.scheduling.sequence import FinishReason, Sequence, StepPlan

Run = Callable[[StepPlan], SampledTokens]


@pytest.fixture
def engine(toy_folder: Path) -> Iterator[Engine]:
    made = make_engine(toy_folder, num_blocks=200, max_num_seqs=4, max_num_waiting=2)
    yield made
    made.stop(0)


def wait_until(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.002)


def hold(engine: Engine) -> threading.Event:
    """Every step waits for the event, which the caller sets to let the engine go on."""
    go, run = threading.Event(), engine.runner.run

    def held(plan: StepPlan) -> SampledTokens:
        assert go.wait(200)
        return run(plan)

    engine.runner.run = held  # type: ignore[method-assign]
    return go


def test_started_engine_gives_what_a_stepped_one_gives(toy_folder: Path, engine: Engine) -> None:
    prompts = random_prompts([3, 30, 9, 1])
    expected = generate_checked(make_engine(toy_folder), prompts, greedy(12, logprobs=1))
    engine.start()
    recorders = [submit(engine, prompt, greedy(12, logprobs=1)) for prompt in prompts]
    wait_until(lambda: all(recorder.finishes for recorder in recorders))
    assert [r.token_ids for r in recorders] == [r.token_ids for r in expected]
    assert engine.is_alive


def test_stop_lets_what_was_accepted_end(engine: Engine) -> None:
    engine.start()
    recorders = [submit(engine, [5, 6], greedy(20)) for _ in range(6)]
    engine.stop(60)
    assert [recorder.finishes for recorder in recorders] == [[FinishReason.LENGTH]] * 6
    assert all(len(recorder.token_ids) == 20 for recorder in recorders)
    assert not engine.is_alive
    with pytest.raises(EngineDeadError, match="the server is shutting down"):
        submit(engine, [5, 6], greedy(2))


def test_stop_ends_the_rest_with_an_error_when_time_is_up(engine: Engine) -> None:
    go = hold(engine)
    engine.start()
    recorders = [submit(engine, [5, 6], greedy(200)) for _ in range(6)]
    wait_until(lambda: engine.scheduler.running)
    late = submit(engine, [5, 6], greedy(200))  # still in the inbox when time is up
    release = threading.Timer(0.2, go.set)
    release.start()
    engine.stop(0.1)
    release.join()
    for recorder in [*recorders, late]:
        assert recorder.finishes == [FinishReason.ERROR]
        assert recorder.error == "the server is shutting down"
        assert len(recorder.token_ids) <= 2, "nothing runs on after the time"
    assert engine.scheduler.allocator.num_used == 0


def test_stop_finds_requests_on_their_way_from_the_inbox(engine: Engine) -> None:
    stopper = threading.Thread(target=lambda: engine.stop(0))
    add = engine.scheduler.add

    def add_while_stopping(sequence: Sequence) -> None:
        engine.scheduler.add = add  # type: ignore[method-assign]
        stopper.start()
        stopper.join(0.3)  # it cannot end before this thread does
        add(sequence)

    engine.scheduler.add = add_while_stopping  # type: ignore[method-assign]
    recorders = [submit(engine, [5, 6], greedy(200)) for _ in range(2)]
    engine.start()
    wait_until(lambda: all(recorder.finishes for recorder in recorders))
    stopper.join(30)
    assert [recorder.finishes for recorder in recorders] == [[FinishReason.ERROR]] * 2


def test_stop_of_an_idle_engine_returns_at_once(engine: Engine) -> None:
    engine.start()
    engine.stop(60)
    engine.stop(60)
    assert not engine.is_alive and engine.wait_for_room(0)


def test_stop_wakes_who_waits_for_room(engine: Engine) -> None:
    go = hold(engine)
    engine.start()
    for _ in range(engine.config.max_num_admitted):
        submit(engine, [5, 6], greedy(3))
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(engine.wait_for_room(60)))
    waiter.start()
    stopper = threading.Thread(target=lambda: engine.stop(60))
    stopper.start()
    waiter.join(30)
    assert answers == [True]
    go.set()
    stopper.join(30)
    assert not stopper.is_alive()


def test_wait_for_room_blocks_until_a_request_ends(engine: Engine) -> None:
    go = hold(engine)
    engine.start()
    for tokens in (2, *[30] * (engine.config.max_num_admitted - 1)):
        assert engine.wait_for_room(0)
        submit(engine, [5, 6], greedy(tokens))
    assert not engine.wait_for_room(0.05)
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(engine.wait_for_room(60)))
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive() and not answers
    go.set()
    waiter.join(30)
    assert answers == [True]


def test_cancel_ends_a_request_that_runs(engine: Engine) -> None:
    engine.start()
    recorder = submit(engine, [5, 6], greedy(250))
    wait_until(lambda: recorder.token_ids)
    engine.cancel(recorder.request_id)
    wait_until(lambda: recorder.finishes)
    assert recorder.finishes == [FinishReason.CANCELLED]
    wait_until(lambda: engine.gauges.used_blocks == 0)


def fail_at(run: Run, step: int) -> Run:
    calls = 0

    def failing(plan: StepPlan) -> SampledTokens:
        nonlocal calls
        calls += 1
        if calls == step:
            raise RuntimeError("out of memory")
        return run(plan)

    return failing


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_fault_ends_every_request_once_and_the_engine(engine: Engine, step: int) -> None:
    engine.runner.run = fail_at(engine.runner.run, step)  # type: ignore[assignment,method-assign]
    recorders = [submit(engine, prompt, greedy(50)) for prompt in random_prompts([3, 40, 9] * 2)]
    engine.start()
    wait_until(lambda: all(recorder.finishes for recorder in recorders))
    for recorder in recorders:
        assert recorder.finishes == [FinishReason.ERROR]
        assert recorder.error == "the engine has failed: RuntimeError: out of memory"
        assert len(recorder.token_ids) <= step - 1
    assert not engine.is_alive
    with pytest.raises(EngineDeadError, match="the engine has failed: RuntimeError"):
        submit(engine, [5, 6], greedy(2))
    assert engine.wait_for_room(0), "nobody waits for a dead engine"
    engine.stop(60)
    assert engine.gauges.num_running == engine.gauges.used_blocks == 0
    assert [len(recorder.finishes) for recorder in recorders] == [1] * 6


@pytest.mark.parametrize("failing_step", [None, 3])
def test_after_step_follows_every_output(engine: Engine, failing_step: int | None) -> None:
    if failing_step is not None:
        engine.runner.run = fail_at(engine.runner.run, failing_step)  # type: ignore[assignment,method-assign]
    recorder = submit(engine, [5, 6], greedy(6))
    seen: list[int] = []  # outputs that had come when it was called
    engine.after_step = lambda: seen.append(len(recorder.outputs))
    engine.start()
    wait_until(lambda: recorder.finishes and seen[-1] == len(recorder.outputs))
    assert seen == list(range(1, len(recorder.outputs) + 1))


def test_a_fault_reaches_what_is_still_in_the_inbox(engine: Engine) -> None:
    run = fail_at(engine.runner.run, 2)
    late: list[Recorder] = []

    def submits_meanwhile(plan: StepPlan) -> SampledTokens:
        late.append(submit(engine, [5, 6], greedy(9)))
        return run(plan)

    engine.runner.run = submits_meanwhile  # type: ignore[method-assign]
    first = submit(engine, [5, 6], greedy(9))
    engine.start()
    wait_until(lambda: first.finishes and len(late) == 2 and late[1].finishes)
    assert [r.finishes for r in (first, *late)] == [[FinishReason.ERROR]] * 3


def test_a_fault_of_one_sink_does_not_cost_the_others_their_end(engine: Engine) -> None:
    def bad_sink(output: TokenOutput) -> None:
        raise ValueError("a broken sink")

    before = submit(engine, [5, 6], greedy(9))
    engine.submit(GenerationRequest([5, 6], greedy(9), bad_sink))
    after = submit(engine, [5, 6], greedy(9))
    engine.start()
    wait_until(lambda: before.finishes and after.finishes)
    assert before.finishes == after.finishes == [FinishReason.ERROR]
    assert not engine.is_alive


def test_requests_from_many_threads_all_end(engine: Engine) -> None:
    engine.start()
    recorders: list[Recorder] = []

    def client(index: int) -> None:
        for turn in range(5):
            while not engine.wait_for_room(1):
                pass
            recorder = submit(engine, [5 + index, 6], greedy(4))
            recorders.append(recorder)
            if turn % 2:
                engine.cancel(recorder.request_id)

    clients = [threading.Thread(target=client, args=(index,)) for index in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    engine.stop(60)
    assert len(recorders) == 30
    assert [len(recorder.finishes) for recorder in recorders] == [1] * 30
    assert len({recorder.request_id for recorder in recorders}) == 30


THREADS_OF_A_PROCESS = """
import os, sys, threading, time
import torch
from octavo.config import make_config
from octavo.engine import Engine, GenerationRequest
from octavo.sampling_params import parse

def num_threads():
    return len(os.listdir("/proc/self/task"))

def settles_at(expected):
    end_s = time.monotonic() + 20
    while num_threads() != expected and time.monotonic() < end_s:
        time.sleep(0.01)
    return num_threads() == expected

torch.set_num_threads(4)  # starts PyTorch's other pool, which is the process's own
before = num_threads()
kernels, loaded, stepping = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
settings = dict(dtype="float32", num_threads=4, kernels=kernels)
engine = Engine(make_config(model=sys.argv[1], **settings))
assert settles_at(before + loaded), (before, num_threads())
ended = threading.Event()
engine.start()
params = parse({"max_tokens": 2, "ignore_eos": True})
sink = lambda output: output.finish_reason and ended.set()
engine.submit(GenerationRequest([5, 6, 7], params, sink))
assert ended.wait(60)
assert settles_at(before + stepping), (before, num_threads())
engine.stop()
"""


@pytest.mark.parametrize(
    ("kernels", "loaded", "stepping"),
    [("reference", 0, 1 + 3), ("auto", 3, 3 + 1)],
)
def test_no_openmp_team_but_the_stepping_thread_s(
    kernels: str, loaded: int, stepping: int, toy_folder: Path
) -> None:
    """More threads than cores over all teams, and every parallel region becomes slower. The native
    kernels have a team of their own, and need none of OpenMP's."""
    arguments = [str(toy_folder), kernels, str(loaded), str(stepping)]
    subprocess.run([sys.executable, "-c", THREADS_OF_A_PROCESS, *arguments], check=True)
