"""The engine stepped by hand: what it accepts, how requests end, what it counts."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from factories import (
    Recorder,
    generate_checked,
    greedy,
    make_engine,
    random_prompts,
    run_to_end,
    step_checked,
    submit,
)
from octavo.engine import Engine
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.generation import GenerationRequest, TokenOutput
from octavo.sampling_params import parse
from octavo.scheduling.sequence import FinishReason


@pytest.fixture(scope="module")
def engine(toy_folder: Path) -> Engine:
    return make_engine(toy_folder, num_blocks=100)


@pytest.mark.parametrize(
    ("prompt", "params", "field", "parts"),
    [
        ([], {}, "prompt", ["0 tokens", "at least 1"]),
        ([5] * 256, {"max_tokens": 1}, "prompt", ["256 tokens", "at most 255", "256 tokens"]),
        ([5] * 999, {"max_tokens": 1}, "prompt", ["999 tokens", "at most 255"]),
        ([5] * 200, {"max_tokens": 57}, "max_tokens", ["57", "at most 56", "256", "200"]),
        ([5], {"max_tokens": 2**31 - 1}, "max_tokens", ["2147483647", "at most 255"]),
        ([5, 512], {}, "input_ids", ["512", "0 to 511"]),
        ([5, -1], {}, "input_ids", ["-1", "0 to 511"]),
        ([-(2**31), 2**31 - 1], {}, "input_ids", ["-2147483648", "0 to 511"]),
        ([5], {"stop_token_ids": [3, 512]}, "stop_token_ids", ["512", "0 to 511"]),
        ([5], {"stop_token_ids": [10**30]}, "stop_token_ids", [str(10**30), "0 to 511"]),
    ],
)
def test_submit_refuses_what_can_never_run(
    engine: Engine, prompt: list[int], params: dict[str, object], field: str, parts: list[str]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        submit(engine, prompt, parse({"temperature": 0, **params}))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: got ")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not engine.step(), "what is refused is not run"
    assert engine.wait_for_room(0)


@pytest.mark.parametrize(("prompt", "max_tokens"), [(1, 255), (255, 1), (128, 128)])
def test_submit_accepts_what_fills_the_context(
    engine: Engine, prompt: int, max_tokens: int
) -> None:
    result = generate_checked(engine, [[5] * prompt], greedy(max_tokens))[0]
    assert len(result.token_ids) == max_tokens
    assert result.finishes == [FinishReason.LENGTH]


def test_submit_keeps_a_copy_of_the_prompt(engine: Engine) -> None:
    expected = generate_checked(engine, [[5, 6, 7]], greedy(4))[0]
    prompt = [5, 6, 7]
    recorder = submit(engine, prompt, greedy(4))
    prompt.clear()
    run_to_end(engine)
    assert recorder.token_ids == expected.token_ids


def stop_tokens(engine: Engine, prompt: list[int]) -> tuple[int, int]:
    """A token that the greedy output has for the first time after some others, and its index."""
    tokens = generate_checked(engine, [prompt], greedy(24))[0].token_ids
    return max((tokens.index(token), token) for token in tokens)[::-1]


def test_a_stop_token_ends_a_request_and_is_its_last_token(engine: Engine) -> None:
    prompt = random_prompts([9])[0]
    token, index = stop_tokens(engine, prompt)
    result = generate_checked(engine, [prompt], greedy(24, stop_token_ids=[token]))[0]
    assert (len(result.token_ids), result.token_ids[-1]) == (index + 1, token)
    assert result.finishes == [FinishReason.STOP]
    assert result.outputs[-1].token_id == token, "the token and the end come together"


def test_end_of_sequence_ends_a_request_unless_ignored(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100)
    prompt = random_prompts([9])[0]
    token, index = stop_tokens(engine, prompt)
    engine._limits = replace(engine._limits, eos_token_ids=(token, 3))
    params = {"temperature": 0, "max_tokens": 24}
    stopped, ignored, later = (
        generate_checked(engine, [prompt], parse({**params, **more}))[0]
        for more in ({}, {"ignore_eos": True}, {"min_tokens": index + 1})
    )
    assert (len(stopped.token_ids), stopped.finishes) == (index + 1, [FinishReason.STOP])
    assert (len(ignored.token_ids), ignored.finishes) == (24, [FinishReason.LENGTH])
    assert token not in later.token_ids[: index + 1]


def prefill(engine: Engine) -> Recorder:
    """A request whose prompt needs three steps, after the first of them."""
    recorder = submit(engine, [5] * 90, greedy(20))
    step_checked(engine)
    return recorder


def decode(engine: Engine) -> Recorder:
    recorder = submit(engine, [5] * 9, greedy(20))
    for _ in range(4):
        step_checked(engine)
    return recorder


def wait(engine: Engine) -> Recorder:
    """A request behind others that fill the engine."""
    for _ in range(2):
        submit(engine, [5, 6], greedy(30))
    recorder = submit(engine, [5] * 9, greedy(20))
    step_checked(engine)
    return recorder


def arrive(engine: Engine) -> Recorder:
    return submit(engine, [5] * 9, greedy(20))


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.STOP])
@pytest.mark.parametrize(
    ("bring_to", "num_tokens"), [(arrive, 0), (wait, 0), (prefill, 0), (decode, 4)]
)
def test_cancel_ends_a_request_in_any_phase(
    toy_folder: Path, bring_to: Callable[[Engine], Recorder], num_tokens: int, reason: FinishReason
) -> None:
    engine = make_engine(toy_folder, num_blocks=100, max_num_seqs=2, max_num_batched_tokens=32)
    recorder = bring_to(engine)
    others = engine.gauges.num_running - (bring_to in (prefill, decode))
    engine.cancel(recorder.request_id, reason)
    assert recorder.finishes == []
    step_checked(engine)
    assert recorder.finishes == [reason]
    assert recorder.outputs[-1] == TokenOutput(None, finish_reason=reason)
    assert len(recorder.token_ids) == num_tokens
    assert len(engine.scheduler.running) == engine.gauges.num_running == others
    assert engine.gauges.used_blocks == engine.scheduler.allocator.num_used
    assert (engine.scheduler.allocator.num_used == 0) == (others == 0)
    run_to_end(engine)
    assert len(recorder.finishes) == 1


def test_cancel_leaves_others_alone(engine: Engine) -> None:
    prompts = random_prompts([9, 20, 5])
    expected = generate_checked(engine, prompts, greedy(12))
    recorders = [submit(engine, prompt, greedy(12)) for prompt in prompts]
    step_checked(engine)
    engine.cancel(recorders[1].request_id)
    run_to_end(engine)
    assert recorders[0].token_ids == expected[0].token_ids
    assert recorders[2].token_ids == expected[2].token_ids
    assert recorders[1].token_ids == expected[1].token_ids[:1]


def test_cancel_of_what_has_ended_or_never_was_does_nothing(engine: Engine) -> None:
    recorder = generate_checked(engine, [[5, 6]], greedy(2))[0]
    engine.cancel(recorder.request_id)
    engine.cancel(-12345)
    assert not step_checked(engine)
    assert recorder.finishes == [FinishReason.LENGTH]


@pytest.mark.parametrize("steps", [0, 3])
def test_deadline_counts_from_arrival(engine: Engine, steps: int) -> None:
    recorder = Recorder()
    arrival_s = time.monotonic() - 59.8
    engine.submit(GenerationRequest([5] * 9, greedy(20, deadline_ms=60_000), recorder, arrival_s))
    for _ in range(steps):
        step_checked(engine)
    time.sleep(0.25)
    step_checked(engine)
    assert recorder.finishes == [FinishReason.DEADLINE]
    assert recorder.outputs[-1] == TokenOutput(None, finish_reason=FinishReason.DEADLINE)
    assert len(recorder.token_ids) == steps
    assert engine.scheduler.allocator.num_used == 0


def test_deadline_that_does_not_pass_changes_nothing(engine: Engine) -> None:
    params = [greedy(6, deadline_ms=3_600_000), greedy(6)]
    results = generate_checked(engine, [[5, 6, 7]] * 2, params)
    assert results[0].token_ids == results[1].token_ids
    assert results[0].finishes == [FinishReason.LENGTH]


def test_priority_goes_first(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100, max_num_seqs=1, max_num_batched_tokens=16)
    ends: list[str] = []

    def sink(name: str) -> Callable[[TokenOutput], None]:
        return lambda output: ends.append(name) if output.finish_reason else None

    for name, priority in (("low", 9), ("normal", 2), ("high", 1), ("normal too", 2)):
        engine.submit(GenerationRequest([5, 6], greedy(3, priority=priority), sink(name)))
    run_to_end(engine)
    assert ends == ["high", "normal", "normal too", "low"]


def test_wait_for_room_is_true_until_max_num_admitted(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100, max_num_seqs=2, max_num_waiting=3)
    for admitted in range(5):
        assert engine.wait_for_room(0), admitted
        submit(engine, [5, 6], greedy(3))
    assert not engine.wait_for_room(0)
    run_to_end(engine)
    assert engine.wait_for_room(0)


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_once_whatever_is_cancelled(toy_folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    engine = make_engine(
        toy_folder, num_blocks=30, max_model_len=100, max_num_seqs=6, max_num_batched_tokens=24
    )
    recorders: list[Recorder] = []
    for _ in range(60):
        if chance.random() < 0.5:
            prompt = [chance.randrange(3, 512) for _ in range(chance.randint(1, 60))]
            params = greedy(chance.randint(1, 40), priority=chance.randint(1, 3))
            recorders.append(submit(engine, prompt, params))
        for recorder in recorders:
            if chance.random() < 0.03:
                engine.cancel(recorder.request_id)
        step_checked(engine)
    run_to_end(engine)
    assert [len(recorder.finishes) for recorder in recorders] == [1] * len(recorders)
    assert all(recorder.outputs[-1].finish_reason for recorder in recorders)
    assert {r for recorder in recorders for r in recorder.finishes} == {
        FinishReason.CANCELLED, FinishReason.LENGTH,
    }  # fmt: skip
    assert engine.scheduler.counters.preemptions.total() > 0
    assert engine.gauges.used_blocks == engine.gauges.num_running == 0


def test_generate_submits_all_or_none(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError):
        engine.generate([[5, 6], []], greedy(3))
    assert not engine.step()
    results = engine.generate([[5, 6], [7]], [greedy(3), greedy(2, logprobs=1)])
    assert [len(result.token_ids) for result in results] == [3, 2]
    assert results[0].logprobs == [None] * 3
    assert all(logprobs is not None for logprobs in results[1].logprobs)
    assert results[0].finish_reason is FinishReason.LENGTH


def test_stop_without_a_thread_ends_what_was_accepted(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100, drain_timeout_s=60)
    running = submit(engine, [5, 6], greedy(9))
    step_checked(engine)
    arrived = submit(engine, [5, 6], greedy(9))
    began_s = time.monotonic()
    engine.stop()
    assert time.monotonic() - began_s < 30, "nobody steps, so there is nothing to wait for"
    for recorder in (running, arrived):
        assert recorder.finishes == [FinishReason.ERROR]
        assert recorder.error == "the server is shutting down"
    with pytest.raises(EngineDeadError, match="shutting down"):
        submit(engine, [5, 6], greedy(9))
    assert not step_checked(engine)
