"""With a seed of its own a sampled request gets the same tokens alone, in a batch and after a
preemption: its randomness depends on the seed and the token's index alone."""

import pytest

from equivalences import Case, assert_equal
from factories import generate_checked
from octavo.sampling_params import SamplingParams, parse

KINDS = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 2.5},
    "top_k": {"temperature": 1.2, "top_k": 12},
    "top_p": {"temperature": 1.2, "top_p": 0.8},
    "both": {"temperature": 0.7, "top_k": 40, "top_p": 0.95},
}


def seeded(case: Case, kind: str, *, seed: int = 100) -> list[SamplingParams]:
    return [
        parse(
            {
                **KINDS[kind],
                "seed": seed + index,
                "max_tokens": case.max_tokens,
                "ignore_eos": True,
                "logprobs": 2,
            }
        )
        for index in range(len(case.prompts))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_equals_alone(exact_case: Case, kind: str) -> None:
    params = seeded(exact_case, kind)
    alone = exact_case.run_alone(params)
    batched = exact_case.engine()
    preempting = exact_case.engine(num_blocks=-(-exact_case.longest // 4) + 2)
    for engine in (batched, preempting):
        results = generate_checked(engine, exact_case.prompts, params)
        for got, expected in zip(results, alone, strict=True):
            assert_equal(got, expected)
    assert preempting.scheduler.counters.preemptions.total() > 0
    greedy_tokens = [result.token_ids for result in exact_case.alone]
    assert [result.token_ids for result in alone] != greedy_tokens


def test_seeds_give_different_tokens(exact_case: Case) -> None:
    engine = exact_case.engine()
    first, second = (
        generate_checked(engine, exact_case.prompts, seeded(exact_case, "hot", seed=seed))
        for seed in (1, 1001)
    )
    pairs = zip(first, second, strict=True)
    assert all(one.token_ids != other.token_ids for one, other in pairs)


def test_without_a_seed_each_request_gets_its_own(exact_case: Case) -> None:
    params = parse({"temperature": 2.0, "max_tokens": 16, "ignore_eos": True})
    engine = exact_case.engine()
    prompt = exact_case.prompts[0]
    results = generate_checked(engine, [prompt, prompt], params)
    assert results[0].token_ids != results[1].token_ids


def test_greedy_and_sampled_requests_share_a_batch(exact_case: Case) -> None:
    params = seeded(exact_case, "both")
    alone = exact_case.run_alone(params)
    mixed = [own if index % 2 else exact_case.params for index, own in enumerate(params)]
    results = generate_checked(exact_case.engine(), exact_case.prompts, mixed)
    for index, result in enumerate(results):
        expected = alone[index] if index % 2 else exact_case.alone[index]
        assert_equal(result, expected)
