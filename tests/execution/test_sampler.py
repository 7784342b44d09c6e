"""From logits to tokens: stops forbidden in time, log probabilities, random numbers."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from factories import make_sequence
from octavo.config import make_config
from octavo.execution.sampler import (
    ALL_FORBIDDEN,
    NOT_FINITE,
    SampledTokens,
    Sampler,
    uniform_numbers,
)
from octavo.kernels import cpu
from octavo.kernels.cpu import Library
from octavo.scheduling.sequence import Sequence

VOCAB = 50

Native = Library | None


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def sequence(num_outputs: int = 0, **params: Any) -> Sequence:
    made = make_sequence(0, **{"max_tokens": 30, **params})
    made.token_ids += [1] * num_outputs
    return made


@pytest.fixture(scope="module", params=["reference", "native"])
def library(request: pytest.FixtureRequest) -> Native:
    return (
        None if request.param == "reference" else cpu.load(make_config(model=Path()).kernel_cache)
    )


def sample_tokens(library: Native, sequences: list[Sequence], logits: Tensor) -> SampledTokens:
    return Sampler(library).sample(sequences, logits).result()


def uniforms(seeds: Iterable[int], indices: Iterable[int]) -> NDArray[np.float64]:
    """Of seeds as they come: negative ones too."""
    return uniform_numbers(
        np.array([seed % 2**64 for seed in seeds], dtype=np.uint64),
        np.array(list(indices), dtype=np.uint64),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("num_outputs", "forbidden"), [(0, True), (2, True), (3, False)])
def test_min_tokens_forbids_stops(
    library: Native, num_outputs: int, forbidden: bool, temperature: float
) -> None:
    logits = random_logits(1)
    first, second, third = logits[0].topk(3).indices.tolist()
    logits[0, first] += 100  # sampled too, it is always taken
    logits[0, third] += 50
    own = sequence(
        num_outputs, min_tokens=3, stop_token_ids=[first, second], temperature=temperature, seed=1
    )
    sampled = sample_tokens(library, [own], logits)
    assert sampled.token_ids == [third if forbidden else first]
    assert sampled.faults == [None]


def test_min_tokens_of_one_row_leaves_the_others_alone(library: Native) -> None:
    logits = random_logits(1).expand(2, -1).clone()
    best, next_best = logits[0].topk(2).indices.tolist()
    rows = [sequence(stop_token_ids=[best]), sequence(stop_token_ids=[best], min_tokens=1)]
    assert sample_tokens(library, rows, logits).token_ids == [best, next_best]


def beside_a_plain_row(library: Native, own: Sequence, logits: Tensor) -> SampledTokens:
    """Samples `own` between two plain rows, whose tokens must stay what they are."""
    plain = sequence()
    best = int(logits.argmax())
    sampled = sample_tokens(library, [plain, own, plain], logits.expand(3, -1).clone())
    assert (sampled.token_ids[0], sampled.token_ids[2]) == (best, best)
    return sampled


def test_allowed_token_ids_are_the_only_ones_chosen(library: Native) -> None:
    logits = random_logits(1)
    order = logits[0].argsort(descending=True).tolist()
    sampled = beside_a_plain_row(library, sequence(allowed_token_ids=[order[9], order[4]]), logits)
    assert sampled.token_ids[1] == order[4]


def test_logit_bias_is_added(library: Native) -> None:
    logits = random_logits(1)
    order = logits[0].argsort(descending=True).tolist()
    bias = {str(order[30]): 100, str(order[0]): -100, str(order[3]): -0.5}
    assert beside_a_plain_row(library, sequence(logit_bias=bias), logits).token_ids[1] == order[30]
    del bias[str(order[30])]
    assert beside_a_plain_row(library, sequence(logit_bias=bias), logits).token_ids[1] == order[1]


@pytest.mark.parametrize(
    ("output", "is_banned"),
    [([4, 5, 6], True), ([4, 5], False), ([5, 6, 4], False), ([6], False), ([], False)],
)
def test_a_bad_word_ends_nowhere(library: Native, output: list[int], is_banned: bool) -> None:
    logits = random_logits(1)
    best, next_best = logits[0].topk(2).indices.tolist()
    own = sequence()
    own.token_ids += output
    own.bad_words = ((5, 6, best), (49, best))
    sampled = beside_a_plain_row(library, own, logits)
    assert sampled.token_ids[1] == (next_best if is_banned else best)


def test_a_bad_word_of_one_token_is_never_chosen(library: Native) -> None:
    logits = random_logits(1)
    best, next_best = logits[0].topk(2).indices.tolist()
    own = sequence()
    own.bad_words = ((best,),)
    assert beside_a_plain_row(library, own, logits).token_ids[1] == next_best


def test_a_bad_word_does_not_begin_in_the_prompt(library: Native) -> None:
    logits = random_logits(1)
    best = int(logits.argmax())
    own = sequence()
    own.bad_words = ((own.token_ids[-1], best),)
    assert beside_a_plain_row(library, own, logits).token_ids[1] == best


def test_no_token_left_is_a_fault_of_that_row_alone(library: Native) -> None:
    logits = random_logits(1)
    own = sequence(allowed_token_ids=[7, 8])
    own.token_ids += [7]
    own.bad_words = ((7, 7), (7, 8))
    assert beside_a_plain_row(library, own, logits).faults == [None, ALL_FORBIDDEN, None]


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_count_the_output(library: Native, name: str) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 30], logits[0, 31], logits[0, 32] = 2.0, 1.9, 1.8
    own = sequence(**{name: 2.0 if name == "repetition_penalty" else 0.5})
    own.token_ids += [30, 31, 31]
    # Presence takes 0.5 off each, frequency 0.5 and 1.0; repetition halves both.
    assert beside_a_plain_row(library, own, logits).token_ids[1] == 32
    own.token_ids += [32] * 4
    expected = {"presence_penalty": 30, "frequency_penalty": 30, "repetition_penalty": 30}
    assert beside_a_plain_row(library, own, logits).token_ids[1] == expected[name]


@pytest.mark.parametrize(
    ("name", "counts_prompt"),
    [("presence_penalty", False), ("frequency_penalty", False), ("repetition_penalty", True)],
)
def test_only_repetition_counts_the_prompt(library: Native, name: str, counts_prompt: bool) -> None:
    own = sequence(**{name: 2.0})
    logits = torch.zeros(1, VOCAB)
    in_prompt, elsewhere = own.token_ids[3], 45
    logits[0, in_prompt], logits[0, elsewhere] = 2.0, 1.5
    picked = beside_a_plain_row(library, own, logits).token_ids[1]
    assert picked == (elsewhere if counts_prompt else in_prompt)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 3.0, "seed": 5}])
def test_logprobs_are_the_models_own(library: Native, count: int, params: dict[str, Any]) -> None:
    logits = random_logits(4)
    expected = torch.log_softmax(logits.double(), -1)
    rows = [sequence(logprobs=count, **params) for _ in range(4)]
    # What sampling forbids is still reported as the model had it.
    rows[3] = sequence(logprobs=count, min_tokens=2, stop_token_ids=[7], **params)
    sampled = sample_tokens(library, rows, logits.clone())
    for row, (token, logprobs) in enumerate(zip(sampled.token_ids, sampled.logprobs, strict=True)):
        assert logprobs is not None
        assert logprobs.logprob == pytest.approx(expected[row, token].item(), abs=1e-5)
        assert logprobs.rank == expected[row].argsort(descending=True).tolist().index(token) + 1
        top = expected[row].topk(count)
        assert [t for t, _ in logprobs.top] == top.indices.tolist()
        assert [v for _, v in logprobs.top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_logprobs_are_for_those_who_asked(library: Native) -> None:
    rows = [sequence(), sequence(logprobs=1), sequence()]
    sampled = sample_tokens(library, rows, random_logits(3))
    assert [logprobs is not None for logprobs in sampled.logprobs] == [False, True, False]


def test_logprobs_of_a_vocabulary_smaller_than_asked(library: Native) -> None:
    sampled = sample_tokens(library, [sequence(logprobs=20)], random_logits(1)[:, :6])
    assert sampled.logprobs[0] is not None and len(sampled.logprobs[0].top) == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1, "top_k": 3, "seed": 1}])
def test_logits_that_are_not_finite_are_told(
    library: Native, bad: float, params: dict[str, Any]
) -> None:
    logits = random_logits(3)
    rows = [sequence(logprobs=2, **params) for _ in range(3)]
    expected = sample_tokens(library, rows, logits.clone())
    logits[1, 4] = bad
    sampled = sample_tokens(library, rows, logits)
    assert sampled.faults == [None, NOT_FINITE, None]
    for row in (0, 2):
        assert sampled.token_ids[row] == expected.token_ids[row]
        assert sampled.logprobs[row] == expected.logprobs[row]


def test_a_logit_of_minus_infinity_is_allowed(library: Native) -> None:
    logits = random_logits(1)
    best, next_best = logits[0].topk(2).indices.tolist()
    logits[0, best] = -math.inf
    sampled = sample_tokens(library, [sequence()], logits)
    assert (sampled.token_ids, sampled.faults) == ([next_best], [None])


def test_each_row_has_its_own_parameters(library: Native) -> None:
    logits = random_logits(1).expand(4, -1).clone()
    rows = [
        sequence(),
        sequence(temperature=2.0, seed=11),
        sequence(temperature=2.0, seed=11, num_outputs=1),
        sequence(temperature=2.0, seed=12),
    ]
    together = sample_tokens(library, rows, logits.clone()).token_ids
    alone = [sample_tokens(library, [row], logits[:1].clone()).token_ids[0] for row in rows]
    assert together == alone
    assert len(set(together)) > 2


def test_a_sampler_follows_its_sequences(library: Native) -> None:
    """As they go on, join, leave and change places, it gives what a new one gives."""
    kinds: list[dict[str, Any]] = [
        {}, {"temperature": 2.0, "seed": 3}, {"logprobs": 2}, {"min_tokens": 3},
        {"temperature": 1.5, "seed": 9, "top_k": 5}, {"repetition_penalty": 1.8},
        {"temperature": 1.0, "seed": 4, "min_p": 0.2, "logit_bias": {"7": 3.5}},
    ]  # fmt: skip
    pool = [sequence(stop_token_ids=[1, 2], **kind) for kind in kinds]
    pool[0].bad_words = ((5, 6), (7,))
    sampler = Sampler(library)
    for step, rows in enumerate(
        [[0, 1], [0, 1], [0, 1, 2], [2, 1, 0], [3, 4], [3, 4], [3, 4], [5], [5], [6, 5, 4, 3, 2, 1]]
        + [list(range(7))] * 3 + [[2], [0], [0]]
    ):  # fmt: skip
        sequences, logits = [pool[row] for row in rows], random_logits(len(rows), seed=step)
        expected = Sampler(library).sample(sequences, logits.clone()).result()
        assert sampler.sample(sequences, logits).result() == expected
        for own, token_id in zip(sequences, expected.token_ids, strict=True):
            own.token_ids.append(token_id)


def test_uniform_numbers_depend_on_seed_and_index_alone() -> None:
    seeds, indices = [3, 3, -1, 2**64 - 1, 0, 2**63], [0, 1, 0, 0, 5, 7]
    together = uniforms(seeds, indices).tolist()
    assert together == [
        uniforms([seed], [index])[0] for seed, index in zip(seeds, indices, strict=True)
    ]
    assert together[2] == together[3], "-1 and 2^64 - 1 are one seed"
    assert len(set(together)) == 5


def naive_uniform(seed: int, index: int) -> float:
    """SplitMix64 twice, in Python's integers; a change changes what every seed gives."""
    state = seed % 2**64
    for addend in (0, index):
        state = (state + (addend + 1) * 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return float((state >> 32) / 2**32)


@pytest.mark.parametrize(
    ("seeds", "indices"),
    [
        (range(20_000), [0] * 20_000),  # the first token of many requests
        ([7] * 20_000, range(20_000)),  # many tokens of one request
        (range(0, 20_000 * 2**40, 2**40), [3] * 20_000),
    ],
    ids=["seeds", "indices", "high_bits"],
)
def test_uniform_numbers_are_uniform(seeds: range | list[int], indices: range | list[int]) -> None:
    numbers = uniforms(seeds, indices)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 49 + 4.5 * math.sqrt(98)
    # Neighbours are independent: a lag-1 correlation of 20,000 numbers stays below 4 / sqrt(n).
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / math.sqrt(20_000)


def test_uniform_numbers_equal_the_naive_ones() -> None:
    seeds, indices = [0, 1, -5, 2**64 - 1, 123456789], [0, 1, 2, 10_000, 7]
    expected = [naive_uniform(s, i) for s, i in zip(seeds, indices, strict=True)]
    assert uniforms(seeds, indices).tolist() == expected
