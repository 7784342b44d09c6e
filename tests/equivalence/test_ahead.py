"""A step planned before the tokens of the one before it are known changes no token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from equivalences import Case, assert_equal, pool_blocks
from factories import generate_checked
from octavo import kernels
from octavo.engine import Engine
from octavo.errors import StepMemoryError
from octavo.execution.device_runner import DeviceRunner
from octavo.sampling_params import parse
from octavo.scheduling.sequence import Sequence, StepPlan

KINDS: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.2, "top_k": 40},
    "penalties": {"temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "min_tokens": {"temperature": 0, "min_tokens": 5},
    "prompt_logprobs": {"temperature": 0, "prompt_logprobs": 2},
}


def count_waste(engine: Engine) -> list[int]:
    """Filled with how many rows of each step were computed for sequences that had ended."""
    wasted: list[int] = []
    settle = engine.scheduler.settle

    def counting(*arguments: Any) -> Any:
        outputs = settle(*arguments)
        wasted.append(sum(output is None for output in outputs))
        return outputs

    engine.scheduler.settle = counting  # type: ignore[method-assign]
    return wasted


def device_engine(case: Case, **settings: Any) -> tuple[Engine, DeviceRunner]:
    """One that launches its steps as on a GPU: decodes in padded rows that stay on the device."""
    engine = case.engine(run_ahead=True, kernels="reference", **settings)
    runner = DeviceRunner(
        engine.runner.model, engine.runner.kv_cache, kernels,
        max_num_seqs=engine.config.max_num_seqs, max_model_len=engine.max_model_len,
    )  # fmt: skip
    runner.capture()
    engine.runner.launch = runner.launch  # type: ignore[method-assign]
    return engine, runner


@pytest.mark.parametrize("share", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("budget", [8, 256])
def test_device_rows_equal_plain(exact_case: Case, share: float, budget: int) -> None:
    engine, runner = device_engine(
        exact_case, num_blocks=pool_blocks(exact_case, share), max_num_batched_tokens=budget,
        max_num_seqs=min(budget, 11), block_size=4,
    )  # fmt: skip
    replayed: list[int] = []
    for size, graph in runner._graphs.items():
        body = graph._replay
        graph._replay = lambda size=size, body=body: (replayed.append(size), body())[1]
    counts = [exact_case.max_tokens - index for index in range(len(exact_case.prompts))]
    each = [parse({"temperature": 0, "max_tokens": count, "ignore_eos": True}) for count in counts]
    results = generate_checked(engine, exact_case.prompts, each)
    for result, alone, count in zip(results, exact_case.alone, counts, strict=True):
        assert result.token_ids == alone.token_ids[:count]
    assert len(set(replayed)) > 2, "graphs of several sizes"
    assert (engine.scheduler.counters.preemptions.total() > 0) == (share < 1)


def test_device_rows_give_each_kind_its_tokens(exact_case: Case) -> None:
    """Requests of all kinds in one batch."""
    each = [
        parse({**list(KINDS.values())[index % len(KINDS)], "max_tokens": 20, "seed": index,
               "ignore_eos": True, **({"logprobs": 2} if index % 2 else {})})
        for index in range(len(exact_case.prompts))
    ]  # fmt: skip
    plain = generate_checked(exact_case.engine(kernels="reference"), exact_case.prompts, each)
    engine, _ = device_engine(exact_case)
    for got, expected in zip(
        generate_checked(engine, exact_case.prompts, each), plain, strict=True
    ):
        assert_equal(got, expected)


@pytest.mark.parametrize("share", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("budget", [8, 256])
def test_ahead_equals_plain(case: Case, share: float, budget: int) -> None:
    ahead = case.engine(
        run_ahead=True, num_blocks=pool_blocks(case, share), max_num_batched_tokens=budget,
        max_num_seqs=min(budget, 16), block_size=4,
    )  # fmt: skip
    wasted = count_waste(ahead)
    case.assert_as_alone(generate_checked(ahead, case.prompts, case.params))
    assert sum(wasted) == 0, "an end by length is known before"
    assert (ahead.scheduler.counters.preemptions.total() > 0) == (share < 1)


@pytest.mark.parametrize("kind", KINDS)
def test_ahead_gives_each_kind_its_tokens(exact_case: Case, kind: str) -> None:
    each = [
        parse({**KINDS[kind], "max_tokens": 20, "seed": index, "logprobs": 2, "ignore_eos": True})
        for index in range(len(exact_case.prompts))
    ]
    plain = generate_checked(exact_case.engine(), exact_case.prompts, each)
    ahead = generate_checked(exact_case.engine(run_ahead=True), exact_case.prompts, each)
    for got, expected in zip(ahead, plain, strict=True):
        assert_equal(got, expected)


def test_a_sequence_that_stops_is_computed_once_too_often(exact_case: Case) -> None:
    """Stop tokens that the plain run has met in the middle of its outputs."""
    plain = exact_case.engine()
    free = generate_checked(plain, exact_case.prompts, exact_case.params)
    stops = [result.token_ids[len(result.token_ids) // 2] for result in free]
    each = [
        parse({"temperature": 0, "max_tokens": exact_case.max_tokens, "logprobs": 5,
               "ignore_eos": True, "stop_token_ids": [stop]})
        for stop in stops
    ]  # fmt: skip
    expected = generate_checked(exact_case.engine(), exact_case.prompts, each)
    ahead = exact_case.engine(run_ahead=True)
    wasted = count_waste(ahead)
    for got, wanted in zip(
        generate_checked(ahead, exact_case.prompts, each), expected, strict=True
    ):
        assert_equal(got, wanted)
        assert got.finishes != ["length"]
    assert 0 < sum(wasted) <= len(exact_case.prompts)
    assert ahead.scheduler.allocator.num_used == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_without_memory_costs_one_request(exact_case: Case, ahead: bool) -> None:
    """The costliest of the step ends with an error; the others get their tokens."""
    engine = exact_case.engine(run_ahead=ahead, max_num_batched_tokens=64)
    name = "launch" if ahead else "run"
    compute, calls = getattr(engine.runner, name), 0

    def out_of_memory_at_the_second(plan: StepPlan) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StepMemoryError("no memory is left for 64 prompt tokens")
        return compute(plan)

    setattr(engine.runner, name, out_of_memory_at_the_second)
    results = generate_checked(engine, exact_case.prompts, exact_case.params)
    failed = [index for index, result in enumerate(results) if result.finishes == ["error"]]
    assert len(failed) == 1 and calls > 2
    untroubled = exact_case.engine(run_ahead=ahead, max_num_batched_tokens=64)
    generate_checked(untroubled, exact_case.prompts, exact_case.params)
    assert engine.stats.prompt_tokens == untroubled.stats.prompt_tokens
    assert engine.stats.queue_time_s.count == untroubled.stats.queue_time_s.count
    for index, (got, expected) in enumerate(zip(results, exact_case.alone, strict=True)):
        if index not in failed:
            assert_equal(got, expected)
    assert engine.scheduler.allocator.num_used == 0


def test_memory_that_ends_behind_a_replay_changes_no_token(exact_case: Case) -> None:
    """The graph has put the next tokens in place by then, and the step is planned again."""
    engine, runner = device_engine(exact_case)
    sample, calls = runner._sampler.sample, 0

    def out_of_memory_once(sequences: list[Sequence], *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 125.00 MiB.")
        return sample(sequences, *arguments)

    runner._sampler.sample = out_of_memory_once  # type: ignore[method-assign]
    results = generate_checked(engine, exact_case.prompts, exact_case.params)
    failed = [result for result in results if result.finishes == ["error"]]
    assert len(failed) == 1 and "needs more memory than is left" in str(failed[0].error)
    for got, expected in zip(results, exact_case.alone, strict=True):
        if got is not failed[0]:
            assert_equal(got, expected)


def test_log_probabilities_without_memory_are_a_fault_of_their_own(
    exact_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = device_engine(exact_case)

    def out_of_memory(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("octavo.execution.sampler.token_logprobs", out_of_memory)
    each = [
        parse({"temperature": 0, "max_tokens": 9, "ignore_eos": True, "logprobs": wanted})
        for wanted in (None, 2, *[None] * (len(exact_case.prompts) - 2))
    ]
    results = generate_checked(engine, exact_case.prompts, each)
    assert [result.finishes for result in results[:3]] == [["length"], ["error"], ["length"]]
    for result, alone in zip(results[2:], exact_case.alone[2:], strict=True):
        assert result.token_ids == alone.token_ids[:9]
