"""sample and greedy, reference and native: against a loop in float64, their limits, and the
distribution of what is picked."""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from octavo import kernels
from octavo.kernels.cpu import Library

Operators = ModuleType | Library

VOCAB = 41


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def uniforms(rows: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, generator=generator, dtype=torch.float64)


def sample(
    operators: Operators,
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[int]:
    rows = len(logits)
    tokens = operators.sample(
        logits, torch.full((rows,), temperature), torch.full((rows,), top_k),
        torch.full((rows,), top_p), torch.full((rows,), min_p), uniform,
    )  # fmt: skip
    assert tokens.dtype == torch.int64 and tokens.shape == (rows,)
    return tokens.tolist()


def kept_probabilities(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float = 0.0
) -> list[float]:
    """What is left of the softmax after the cuts, by token id; not normalized."""
    largest = max(logits)
    weights = [math.exp((value - largest) / temperature) for value in logits]
    weights = [weight if weight >= min_p else 0.0 for weight in weights]  # the largest is 1
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    order = order[: top_k if top_k > 0 else len(order)]
    total = math.fsum(weights[token] for token in order)
    kept: set[int] = set()
    reached = 0.0
    for token in order:
        if kept and reached >= top_p * total:
            break
        kept.add(token)
        reached += weights[token]
    return [weight if token in kept else 0.0 for token, weight in enumerate(weights)]


def naive_sample(
    logits: list[float],
    uniform: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float = 0.0,
) -> int:
    if temperature == 0:
        return max(range(len(logits)), key=lambda token: logits[token])
    kept = kept_probabilities(logits, temperature, top_k, top_p, min_p)
    target, cumulative = uniform * math.fsum(kept), 0.0
    for token, weight in enumerate(kept):
        cumulative += weight
        if cumulative > target:
            return token
    raise AssertionError("the numbers are below 1")


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.4, 0.01])
@pytest.mark.parametrize("top_k", [0, -1, 1, 7, 1000])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
def test_sample_picks_what_a_loop_picks(
    operators: Operators, temperature: float, top_k: int, top_p: float
) -> None:
    logits, uniform = random_logits(60), uniforms(60)
    expected = [
        naive_sample(row, number, temperature, top_k, top_p)
        for row, number in zip(logits.tolist(), uniform.tolist(), strict=True)
    ]
    assert sample(operators, logits, uniform, temperature, top_k, top_p) == expected


@pytest.mark.parametrize("min_p", [0.2, 0.6, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.6), (7, 0.6)])
def test_sample_cuts_what_is_less_likely_than_min_p(
    operators: Operators, top_k: int, top_p: float, min_p: float
) -> None:
    logits, uniform = random_logits(60), uniforms(60)
    expected = [
        naive_sample(row, number, 1.5, top_k, top_p, min_p)
        for row, number in zip(logits.tolist(), uniform.tolist(), strict=True)
    ]
    assert sample(operators, logits, uniform, 1.5, top_k, top_p, min_p) == expected
    assert expected != sample(operators, logits, uniform, 1.5, top_k, top_p), "nothing was cut"


@pytest.mark.parametrize("vocab", [1, 2, 129])
def test_sample_takes_any_vocabulary(operators: Operators, vocab: int) -> None:
    logits, uniform = random_logits(20, vocab), uniforms(20)
    expected = [
        naive_sample(row, number, 1.0, 3, 0.9)
        for row, number in zip(logits.tolist(), uniform.tolist(), strict=True)
    ]
    assert sample(operators, logits, uniform, 1.0, 3, 0.9) == expected


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 1e-9), (1.0, 0, 1e-300), (9.0, 1, 0.5)],
)
def test_sample_is_greedy_at_the_limits(
    operators: Operators, temperature: float, top_k: int, top_p: float
) -> None:
    logits = random_logits(50)
    assert (
        sample(operators, logits, uniforms(50), temperature, top_k, top_p)
        == logits.argmax(-1).tolist()
    )


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-44])
def test_sample_is_greedy_when_the_temperature_is_tiny(
    operators: Operators, temperature: float
) -> None:
    logits = 10 * random_logits(50)
    assert sample(operators, logits, uniforms(50), temperature) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_sample_takes_logits_of_any_size(operators: Operators, scale: float) -> None:
    logits, uniform = random_logits(40) * scale, uniforms(40)
    expected = [
        naive_sample(row, number, 1.0, 0, 1.0)
        for row, number in zip(logits.tolist(), uniform.tolist(), strict=True)
    ]
    assert sample(operators, logits, uniform) == expected


def chi_square(counts: list[int], weights: list[float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom."""
    total, whole = sum(counts), math.fsum(weights)
    expected = [total * weight / whole for weight in weights]
    pairs = [(c, e) for c, e in zip(counts, expected, strict=True) if e > 0]
    assert min(e for _, e in pairs) > 5
    return sum((c - e) ** 2 / e for c, e in pairs), len(pairs) - 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 1.0), (2.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.5, 8, 0.9)],
)
def test_sample_picks_by_probability(
    operators: Operators, temperature: float, top_k: int, top_p: float
) -> None:
    rows = 20_000
    row = random_logits(1, vocab=12, seed=4)[0].clamp(-1, 1.5)
    tokens = sample(
        operators, row.expand(rows, -1).contiguous(), uniforms(rows), temperature, top_k, top_p
    )
    counts = [tokens.count(token) for token in range(12)]
    weights = kept_probabilities(row.tolist(), temperature, top_k, top_p)
    assert all(count == 0 for count, weight in zip(counts, weights, strict=True) if weight == 0)
    statistic, freedom = chi_square(counts, weights)
    # Of a thousand such tests fewer than one would pass this bound by chance.
    assert statistic < freedom + 4.5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-32])
def test_sample_never_picks_what_has_no_probability(operators: Operators, uniform: float) -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.5, -math.inf]]).expand(3, -1).contiguous()
    picked = sample(operators, logits, torch.full((3,), uniform, dtype=torch.float64))
    assert picked == [1 if uniform == 0 else 3] * 3
    picked = sample(
        operators, logits, torch.full((3,), uniform, dtype=torch.float64), top_k=4, top_p=0.99
    )
    assert picked == [1 if uniform == 0 else 3] * 3


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.5, 2), (0.6, 3), (0.75, 3)])
def test_sample_keeps_the_smallest_set_that_reaches_top_p(
    operators: Operators, top_p: float, kept: int
) -> None:
    picked = sample(operators, torch.zeros(400, 4), uniforms(400), top_p=top_p)
    assert set(picked) == set(range(kept))


def test_sample_never_picks_from_the_cut_tail(operators: Operators) -> None:
    logits = random_logits(2000)
    fifth = logits.topk(5).values[:, -1]
    picked = torch.tensor(sample(operators, logits, uniforms(2000), 50.0, top_k=5))
    assert (logits[torch.arange(2000), picked] >= fifth).all()
    assert (picked != logits.argmax(-1)).any()


def test_sample_of_a_row_does_not_depend_on_the_batch(operators: Operators) -> None:
    rows = 24
    logits, uniform = random_logits(rows), uniforms(rows)
    temperature = torch.tensor([0.0, 0.7, 1.0, 3.0] * 6)
    top_k = torch.tensor([0, 3, 0] * 8)
    top_p = torch.tensor([1.0, 1.0, 0.9, 0.5, 1.0, 0.2] * 4)
    min_p = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.2, 0.0, 0.0, 0.5] * 3)
    together = operators.sample(logits, temperature, top_k, top_p, min_p, uniform)
    for order in (
        torch.arange(rows).flip(0),
        torch.randperm(rows, generator=torch.Generator().manual_seed(0)),
    ):
        for part in order.reshape(4, 6):
            alone = operators.sample(
                logits[part], temperature[part], top_k[part], top_p[part], min_p[part],
                uniform[part],
            )  # fmt: skip
            assert torch.equal(alone, together[part])


def test_sample_leaves_the_logits_alone(operators: Operators) -> None:
    logits = random_logits(4)
    before = logits.clone()
    sample(operators, logits, uniforms(4), 0.5, 3, 0.5)
    assert torch.equal(logits, before)


def test_sample_keeps_a_row_that_is_not_a_number_from_the_others(operators: Operators) -> None:
    logits, uniform = random_logits(6), uniforms(6)
    expected = sample(operators, logits, uniform, 1.0, 5, 0.9)
    logits[2] = math.nan
    picked = sample(operators, logits, uniform, 1.0, 5, 0.9)
    assert picked[:2] + picked[3:] == expected[:2] + expected[3:]
    assert 0 <= picked[2] < VOCAB


@pytest.mark.parametrize("repetition", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("frequency", "presence"), [(0.0, 0.0), (0.4, -1.0), (-2.0, 2.0)])
def test_penalize_is_what_a_loop_computes(
    repetition: float, frequency: float, presence: float
) -> None:
    logits = random_logits(1)[0]
    prompt, output = [3, 3, 8], [8, 5, 5, 40]
    expected = logits.tolist()
    for token in {*prompt, *output}:
        value = expected[token]
        value = value / repetition if value > 0 else value * repetition
        count = output.count(token)
        expected[token] = value - frequency * count - presence * (count > 0)
    seen = sorted({*prompt, *output})
    counts = torch.tensor([output.count(token) for token in seen])
    kernels.penalize(logits, torch.tensor(seen), counts, repetition, frequency, presence)
    assert logits.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("vocab", [1, 2, 41, 300])
def test_greedy_takes_the_first_of_the_largest(operators: Operators, vocab: int) -> None:
    logits = random_logits(30, vocab).round()  # many are equal
    token_ids, is_finite = operators.greedy(logits)
    assert token_ids.dtype == torch.int64 and is_finite.dtype == torch.bool
    assert token_ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert is_finite.tolist() == [True] * 30


@pytest.mark.parametrize("place", [0, 17, 40])
@pytest.mark.parametrize(
    ("value", "finite"), [(math.nan, False), (math.inf, False), (-math.inf, True)]
)
def test_greedy_tells_which_rows_are_not_finite(
    operators: Operators, value: float, finite: bool, place: int
) -> None:
    logits = random_logits(3)
    logits[1, place] = value
    token_ids, is_finite = operators.greedy(logits)
    assert is_finite.tolist() == [True, finite, True]
    for row in (0, 2):
        assert token_ids[row] == logits[row].argmax()
    if finite:
        assert token_ids[1] == logits[1].argmax() != place
    assert 0 <= token_ids[1] < VOCAB


def test_greedy_of_minus_infinity_alone_is_not_finite(operators: Operators) -> None:
    token_ids, is_finite = operators.greedy(torch.full((2, 5), -math.inf))
    assert token_ids.tolist() == [0, 0] and not is_finite.any()
