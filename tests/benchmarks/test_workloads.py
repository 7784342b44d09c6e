"""Names, prompts, and what is read off the times of tokens."""

import random

import pytest

from octavo.benchmarks.workloads import DEFAULT_NAMES, Workload, measures, parse_workload
from octavo.errors import ConfigError


def test_names() -> None:
    assert parse_workload("p128-g64-c8") == Workload("p128-g64-c8", 128, 64, 8)
    shared, primed = parse_workload("shared1024+32-g7-c9"), parse_workload("primed16+1-g2-c1")
    assert (shared.prompt_tokens, shared.output_tokens, shared.concurrency) == (1056, 7, 9)
    assert (shared.shared_tokens, shared.primed) == (1024, False)
    assert (primed.prompt_tokens, primed.shared_tokens, primed.primed) == (17, 16, True)
    assert [parse_workload(name).name for name in DEFAULT_NAMES] == list(DEFAULT_NAMES)


@pytest.mark.parametrize(
    "name, limit",
    [
        ("p128g64c8", "of the form p128-g128-c8"),
        ("", "of the form"),
        ("p-g64-c8", "of the form"),
        ("shared0+8-g4-c2", "shared and own tokens should be 1 or more"),
        ("primed8+0-g4-c2", "shared and own tokens should be 1 or more"),
        ("p0-g4-c1", "0 prompt tokens; should be 1 to 1048576"),
        ("p4-g1-c1", "1 output tokens; should be 2 to"),
        ("p4-g4-c0", "0 requests; should be 1 to 4096"),
        ("p4-g4-c4097", "4097 requests"),
    ],
)
def test_what_is_no_workload_is_refused_by_name_and_limit(name: str, limit: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_workload(name)
    assert str(refused.value).startswith(f"--workloads = {name}: ") and limit in str(refused.value)


def test_prompts_are_those_of_other_engines_scripts() -> None:
    """Whose generator is written out here: the same seed, one draw after the other."""
    generator = random.Random("20/3/16/True/4")
    head = [generator.randrange(300, 32768 - 2000) for _ in range(16)]
    expected = [head + [generator.randrange(300, 30768) for _ in range(4)] for _ in range(3)]
    workload = parse_workload("primed16+4-g4-c3")
    assert workload.prompts(4) == expected
    assert workload.prompts(4, 128_256) == expected  # of a larger vocabulary no more is used
    assert (
        random.Random("5/2/0/False/-1").randrange(300, 30768)
        == (parse_workload("p5-g4-c2").prompts(-1)[0][0])
    )


def test_prompts_of_a_small_vocabulary_are_in_it() -> None:
    for vocab_size in (1, 512, 4095, 4096):
        ids = [i for prompt in parse_workload("p200-g4-c8").prompts(0, vocab_size) for i in prompt]
        assert min(ids) >= 0 and max(ids) < vocab_size


def test_runs_workloads_and_requests_have_prompts_of_their_own() -> None:
    names = ("p32-g4-c4", "p32-g4-c3", "shared16+16-g4-c4", "primed16+16-g4-c4")
    prompts = [p for name in names for run in (-1, 0, 1) for p in parse_workload(name).prompts(run)]
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts) == 3 * 15


def test_what_primes_has_the_shared_beginning_and_another_end() -> None:
    workload = parse_workload("primed16+4-g4-c3")
    prompts = workload.prompts(0)
    priming = workload.priming_prompt(prompts)
    assert all(prompt[:16] == priming[:16] for prompt in prompts)
    assert priming[16:] == prompts[0][16:][::-1] and priming not in prompts


def test_measures() -> None:
    workload = Workload("", prompt_tokens=10, output_tokens=4, concurrency=3)
    found = measures(
        workload,
        # The second request's tokens up to 2.0 came before all had begun.
        [[1.0, 3.0, 5.0, 7.0], [0.5, 1.5, 2.0, 2.5], [2.0, 3.0, 4.0, 8.0]],
    )
    assert found == {
        "prefill_tps": 30 / 2.0,
        "ttft_s": 1.0,
        "ttft_max_s": 2.0,
        "decode_tps": (3 + 1 + 3) / (8.0 - 2.0),
        "tpot_ms": 1e3 * 2.0,  # of 2.0, 2/3 and 2.0
        "total_s": 8.0,
    }


def test_measures_of_one_request() -> None:
    found = measures(Workload("", 7, 2, 1), [[0.25, 0.75]])
    assert (found["prefill_tps"], found["decode_tps"], found["tpot_ms"]) == (28.0, 2.0, 500.0)


@pytest.mark.parametrize("times", [[[0.1, 0.2]], [[0.1, 0.2], [0.3]]])
def test_a_load_that_is_not_whole_has_no_measures(times: list[list[float]]) -> None:
    with pytest.raises(AssertionError):
        measures(Workload("", 7, 2, 2), times)
