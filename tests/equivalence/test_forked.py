"""n sequences of one request = each alone: sharing the prompt's blocks changes no token."""

from dataclasses import replace

import pytest

from equivalences import Case, assert_equal
from factories import generate_checked, run_to_end, step_checked, submit
from octavo.engine import _seed_of_fork
from octavo.sampling_params import SamplingParams, parse
from octavo.scheduling.sequence import FinishReason

N = 4


def sampled(case: Case, **more: object) -> SamplingParams:
    own = {"temperature": 1.5, "seed": 9, "max_tokens": case.max_tokens, "ignore_eos": True}
    return parse({**own, "logprobs": 2, "n": N, **more})


def alone(case: Case, prompt: list[int], params: SamplingParams, index: int) -> SamplingParams:
    seed = _seed_of_fork(params.seed, index) if index else params.seed
    return replace(params, n=1, seed=seed)


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 8, "max_num_seqs": 8}, {"enable_prefix_caching": False}],
    ids=["whole", "chunked", "no cache"],
)
def test_forked_equals_alone(exact_case: Case, settings: dict[str, int]) -> None:
    case, params = exact_case, sampled(exact_case)
    engine = case.engine(**settings)
    results = generate_checked(engine, case.prompts, params)
    reference = case.engine()
    for prompt, result in zip(case.prompts, results, strict=True):
        for index in range(N):
            own = alone(case, prompt, params, index)
            (expected,) = generate_checked(reference, [prompt], own)
            assert_equal(result.of(index), expected)
    # All but one of a request's sequences copy its last block, unless that is full.
    partial = sum(len(prompt) % 4 > 0 for prompt in case.prompts)
    assert engine.scheduler.counters.copied_blocks == (N - 1) * partial > 0
    assert engine.scheduler.counters.preemptions.total() == 0


@pytest.mark.parametrize("spare_blocks", [0, 6, 20])
def test_forked_under_pressure_equals_alone(exact_case: Case, spare_blocks: int) -> None:
    case, params = exact_case, sampled(exact_case)
    engine = case.engine(num_blocks=-(-case.longest // 4) + spare_blocks)
    results = generate_checked(engine, case.prompts, params)
    expected = generate_checked(case.engine(), case.prompts, params)
    for got, own in zip(results, expected, strict=True):
        for index in range(N):
            assert_equal(got.of(index), own.of(index))
    assert engine.scheduler.counters.preemptions.total() > 0


def test_forks_share_the_blocks_of_their_prompt(exact_case: Case) -> None:
    case = exact_case
    engine, prompt = case.engine(), max(case.prompts, key=len)
    submit(engine, prompt, sampled(case, n=8, max_tokens=2))
    step_checked(engine)
    assert len(engine.scheduler.running) == 8
    assert engine.scheduler.allocator.num_used == -(-len(prompt) // 4)
    run_to_end(engine)


def test_one_of_n_ends_and_the_others_go_on(exact_case: Case) -> None:
    case = exact_case
    engine = case.engine()
    free = generate_checked(engine, [case.prompts[0]], sampled(case))[0]
    recorder = submit(engine, case.prompts[0], sampled(case))
    for _ in range(5):
        step_checked(engine)
    engine.cancel(recorder.request_id, FinishReason.STOP, 2)
    run_to_end(engine)
    assert [recorder.of(i).finishes[0] for i in range(N)] == [
        FinishReason.LENGTH, FinishReason.LENGTH, FinishReason.STOP, FinishReason.LENGTH,
    ]  # fmt: skip
    assert recorder.of(2).token_ids == free.of(2).token_ids[:5]
    for index in (0, 1, 3):
        assert_equal(recorder.of(index), free.of(index))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_cancelled_request_ends_all_of_its_sequences(exact_case: Case, steps: int) -> None:
    case = exact_case
    engine = case.engine(max_num_batched_tokens=32)
    recorder = submit(engine, max(case.prompts, key=len), sampled(case))
    for _ in range(steps):
        step_checked(engine)
    engine.cancel(recorder.request_id)
    run_to_end(engine)
    assert recorder.finishes == [FinishReason.CANCELLED] * N
    assert engine.wait_for_room(0)


def test_n_takes_n_places(exact_case: Case) -> None:
    case = exact_case
    engine = case.engine(max_num_seqs=5)
    for prompt in case.prompts[:3]:
        submit(engine, prompt, sampled(case))
    while step_checked(engine):
        assert len(engine.scheduler.running) <= 5


def test_greedy_sequences_are_all_the_same(exact_case: Case) -> None:
    case = exact_case
    result = generate_checked(case.engine(), case.prompts[:1], replace(case.params, n=3))[0]
    for index in range(3):
        assert_equal(result.of(index), case.alone[0])
