"""Warm = cold: a sequence whose beginning is found in the prefix cache gets the same tokens."""

from dataclasses import replace

import pytest

from equivalences import Case, assert_equal
from factories import Recorder, generate_checked, greedy
from octavo.engine import Engine


def found(results: list[Recorder]) -> list[int]:
    """Tokens of each prompt that were found."""
    prompts = [result.outputs[0].prompt for result in results]
    return [prompt.num_cached_tokens for prompt in prompts if prompt is not None]


def hits(engine: Engine) -> int:
    return engine.scheduler.counters.prefix_hit_tokens.total()


def test_warm_equals_cold(case: Case) -> None:
    engine = case.engine()
    cold = generate_checked(engine, case.prompts, case.params)
    assert hits(engine) == 0 and found(cold) == [0] * len(cold)
    warm = generate_checked(engine, case.prompts, case.params)
    # All full blocks of a prompt, but for the token whose logits are needed.
    assert found(warm) == [(len(prompt) - 1) // 4 * 4 for prompt in case.prompts]
    assert hits(engine) == sum(found(warm)) > 0
    case.assert_as_alone(cold)
    case.assert_as_alone(warm)


@pytest.mark.parametrize("budget", [8, 64])
def test_prompts_that_begin_alike_equal_themselves_alone(exact_case: Case, budget: int) -> None:
    """Shared beginnings of all lengths, while others run, with chunks that meet them anywhere."""
    case = exact_case
    longest = max(case.prompts, key=len)
    prompts = [longest[:cut] + case.prompts[-1][:5] for cut in range(0, len(longest) - 5, 7)]
    alone = [generate_checked(case.engine(), [prompt], case.params)[0] for prompt in prompts]
    engine = case.engine(max_num_batched_tokens=budget, max_num_seqs=4)
    joins = [3 * index for index in range(len(prompts))]
    for got, expected in zip(
        generate_checked(engine, prompts, case.params, joins), alone, strict=True
    ):
        assert_equal(got, expected)
    assert hits(engine) > 0


def test_a_conversation_finds_its_earlier_turns(exact_case: Case) -> None:
    case = exact_case
    engine, prompt = case.engine(), list(case.prompts[0][:20])
    for turn in range(3):
        (got,) = generate_checked(engine, [prompt], greedy(9, logprobs=5))
        (expected,) = generate_checked(case.engine(), [prompt], greedy(9, logprobs=5))
        assert_equal(got, expected)
        # The last turn's answer included, as far as its blocks are full.
        assert (found([got])[0] > 0) == (turn > 0)
        assert turn == 0 or found([got])[0] >= len(prompt) - 3 - 4
        prompt += [*got.token_ids, *case.prompts[1][:3]]


def test_evicted_blocks_are_computed_again(exact_case: Case) -> None:
    case = exact_case
    engine = case.engine(num_blocks=-(-case.longest // 4) + 3)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert engine.scheduler.allocator.evictions.total() > 0
    # The latest is found, and its run evicts the ones before it.
    for prompt, expected in reversed(list(zip(case.prompts, case.alone, strict=True))):
        for _ in range(2):
            (got,) = generate_checked(engine, [prompt], case.params)
            case.compare(got, expected)
    assert hits(engine) > 0


def test_a_preempted_sequence_finds_its_own_blocks_and_that_is_no_hit(exact_case: Case) -> None:
    case = exact_case
    engine = case.engine(num_blocks=-(-case.longest // 4) + 6)
    unrelated = [[token + 1 for token in prompt] for prompt in case.prompts[:4]]
    generate_checked(engine, unrelated, case.params)
    counters = engine.scheduler.counters
    assert counters.preemptions.total() > 0 and counters.prefix_hit_tokens.total() == 0


@pytest.mark.parametrize("switch", ["engine", "request", "tenant"])
def test_what_is_not_to_be_shared_is_not(exact_case: Case, switch: str) -> None:
    case = exact_case
    engine = case.engine(enable_prefix_caching=switch != "engine")
    params = case.params if switch != "request" else replace(case.params, cache=False)
    first, second = (
        generate_checked(
            engine, case.prompts, replace(params, tenant=t if switch == "tenant" else None)
        )
        for t in ("a", "b")
    )
    assert hits(engine) == 0
    case.assert_as_alone(first)
    case.assert_as_alone(second)
    if switch == "tenant":
        generate_checked(engine, case.prompts, replace(params, tenant="a"))
        assert hits(engine) > 0
