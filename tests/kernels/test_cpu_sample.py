"""The native sample on vocabularies of every size, against a distribution in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels.cpu import Library
from sampled_rows import BOTH_ENDS, LAST, Rows, check, kept_weights, normal, rows_of, uniforms


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 255, 256, 257, 4097, 32_768, 262_144])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1, 0),
        (50, 1, 0),
        (0, 0.9, 0),
        (50, 0.9, 0),
        (3000, 0.99, 0),
        (0, 1, 0.05),
        (9, 0.5, 0.1),
    ],
)
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_vocabularies(
    library: Library, vocab: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    rows = rows_of(normal(6, vocab), uniforms(6), temperature, top_k, top_p, min_p)
    check(rows, rows.sample(library))


@pytest.mark.parametrize("vocab", [40, 3000, 40_000])
@pytest.mark.parametrize("top_k", [1, 2, 17, 156, 157, 158, 2999, 3000, 50_000])
def test_top_k_keeps_as_many(library: Library, vocab: int, top_k: int) -> None:
    """In falling order the last number gives the last token that stays, in rising order the first
    number the first one."""
    falling = normal(1, vocab).sort(descending=True).values
    kept = min(top_k, vocab)
    assert rows_of(falling, LAST, 2.0, top_k).sample(library).tolist() == [kept - 1]
    assert rows_of(falling.flip(1), 0.0, 2.0, top_k).sample(library).tolist() == [vocab - kept]


@pytest.mark.parametrize("vocab", [40, 3000, 40_000])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 30, 2000])
def test_top_p_keeps_as_many(library: Library, vocab: int, top_k: int, top_p: float) -> None:
    falling = normal(1, vocab).sort(descending=True).values
    rows = rows_of(falling, LAST, 1.0, top_k, top_p)
    kept = int((kept_weights(rows, 0) > 0).sum())
    assert abs(rows.sample(library).item() - (kept - 1)) <= (kept > 1000)
    rising = rows_of(falling.flip(1), 0.0, 1.0, top_k, top_p)
    assert abs(rising.sample(library).item() - (vocab - kept)) <= (kept > 1000)


@pytest.mark.parametrize("vocab", [40, 1000, 33_000])
def test_of_ties_the_first_stay(library: Library, vocab: int) -> None:
    logits = torch.zeros(2, vocab)
    logits[:, 1::2] = 1.0
    for top_k, last in ((1, 1), (7, 13), (vocab // 2, vocab - 1), (vocab // 2 + 3, vocab - 1)):
        rows = rows_of(logits, BOTH_ENDS, 50.0, top_k)
        first = 1 if top_k <= vocab // 2 else 0
        assert rows.sample(library).tolist() == [first, last]
    # Of the even ones three stay beside the odd ones: each is drawn by the middle of its interval.
    logits[:, 1::2] = 1e-3
    kept = torch.tensor([0, 1, 2, 3, 4, *range(5, vocab, 2)])
    weights = logits[0, kept].double().exp()
    middles = ((weights.cumsum(0) - weights / 2) / weights.sum())[:100]
    drawn = rows_of(logits[:1].expand(len(middles), -1), middles, 1.0, vocab // 2 + 3)
    assert torch.equal(drawn.sample(library), kept[:100])


def test_min_p_of_one_keeps_the_most_likely(library: Library) -> None:
    logits = normal(3, 700)
    logits[:, 600] = logits[:, 80] = 9.0
    rows = rows_of(logits, torch.tensor([0.0, 0.49, LAST], dtype=torch.float64), 5.0, min_p=1.0)
    assert rows.sample(library).tolist() == [80, 80, 600]


@pytest.mark.parametrize("place", [0, 255, 256, 20_000, 40_000])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1), (5, 1), (0, 0.9), (5, 0.9)])
def test_the_only_token_left(library: Library, place: int, top_k: int, top_p: float) -> None:
    logits = torch.full((2, 40_001), -math.inf)
    logits[:, place] = -3.0
    for temperature in (0.0, 1e-6, 1.0, 100.0, math.inf):
        rows = rows_of(logits, BOTH_ENDS, temperature, top_k, top_p)
        assert rows.sample(library).tolist() == [place, place]


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1), (5, 0.9)])
def test_what_is_not_finite_stays_in_its_row(
    library: Library, fault: float, top_k: int, top_p: float
) -> None:
    rows = rows_of(normal(9, 2000), uniforms(9), 1.0, top_k, top_p)
    clean = rows.sample(library)
    for places in (slice(None), slice(7, 8), slice(1990, 2000)):
        rows.logits[:] = normal(9, 2000)
        rows.logits[4, places] = fault
        tokens = rows.sample(library)
        assert 0 <= tokens[4] < 2000
        others = [row for row in range(9) if row != 4]
        assert torch.equal(tokens[others], clean[others])


def test_parameters_outside_of_their_range_stay_in_the_vocabulary(library: Library) -> None:
    odd = [math.nan, math.inf, -math.inf, -1.0, 2.0, 1e-45, -1e-45]
    logits = normal(len(odd), 300)
    for field in ("temperature", "top_p", "min_p", "uniform"):
        for top_k in (-(2**63), 0, 2**63 - 1):
            rows = rows_of(logits, 0.5, top_k=top_k, top_p=0.7)
            getattr(rows, field)[:] = torch.tensor(odd)
            tokens = rows.sample(library)
            assert ((tokens >= 0) & (tokens < 300)).all()


def test_no_rows(library: Library) -> None:
    assert rows_of(torch.empty(0, 8), torch.empty(0)).sample(library).shape == (0,)


def test_threads_change_nothing(libraries: list[Library]) -> None:
    rows = rows_of(normal(40, 5000), uniforms(40), 1.3, 70, 0.9)
    one, *others = (rows.sample(library).tolist() for library in libraries)
    assert others == [one, one]
    assert len(set(one)) > 20


SHARES = st.floats(0, 1, width=32)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    vocab=st.one_of(st.integers(1, 40), st.integers(200, 1100)),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 4.0, 30.0, 1e30]),
    step=st.sampled_from([0.0, 0.25, 2.0]),
    forbidden=st.sampled_from([0.0, 0.5, 0.99]),
    params=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-6, 0.2, 1.0, 7.0, 100.0]),
            st.one_of(st.sampled_from([-1, 0, 1, 2, 2**31 - 1]), st.integers(1, 1100)),
            st.one_of(st.just(1.0), SHARES),
            st.one_of(st.just(0.0), SHARES),
            st.one_of(st.just(0.0), st.just(LAST), SHARES.filter(lambda share: share < 1)),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_any_row_is_drawn_right_and_alone_as_in_a_batch(
    library: Library,
    seed: int,
    vocab: int,
    scale: float,
    step: float,
    forbidden: float,
    params: list[tuple[float, int, float, float, float]],
) -> None:
    """step: what logits are multiples of, so that many are equal. forbidden: the share of −∞."""
    logits = scale * normal(len(params), vocab, seed=seed)
    if step:
        logits = (logits / step).round() * step
    lost = uniforms(logits.numel(), seed).view_as(logits) < forbidden
    lost[:, seed % vocab] = False
    logits[lost] = -math.inf
    temperature, top_k, top_p, min_p, uniform = zip(*params, strict=True)
    rows = Rows(
        logits, torch.tensor(temperature), torch.tensor(top_k), torch.tensor(top_p),
        torch.tensor(min_p), torch.tensor(uniform, dtype=torch.float64),
    )  # fmt: skip
    tokens = rows.sample(library)
    check(rows, tokens)
    for row in range(len(params)):
        assert torch.equal(rows[[row]].sample(library), tokens[row : row + 1])
