"""The GPU's log probabilities of chosen tokens: against those of execution.logprobs."""

import math

import pytest
import torch
from torch import Tensor

from octavo.execution.logprobs import token_logprobs
from octavo.kernels.gpu.chosen_logprobs import chosen_logprobs
from sampled_rows import normal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the interpreter's numpy, where a GPU computes ∞ and NaN without a word.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def chosen(logits: Tensor, token_ids: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.tensor(token_ids, dtype=torch.int64, device=DEVICE)
    logprobs, ranks = chosen_logprobs(logits.to(DEVICE), ids)
    assert logprobs.dtype == torch.float32 and ranks.dtype == torch.int64
    return logprobs.cpu(), ranks.cpu()


def check(logits: Tensor, token_ids: list[int]) -> None:
    logprobs, ranks = chosen(logits, token_ids)
    # In float32 log probabilities of different logits may round to the same.
    entries = token_logprobs(logits.double(), token_ids, [0] * len(token_ids))
    assert ranks.tolist() == [entry.rank for entry in entries]
    expected = torch.tensor([entry.logprob for entry in entries], dtype=torch.float32)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", [1, 7, 1000, 4096, 4099, 9001])
def test_any_token_of_any_vocabulary(vocab: int) -> None:
    logits = 3 * normal(9, vocab + 2)[:, 1 : vocab + 1]
    check(logits, [0, vocab - 1, *torch.arange(7).mul(577).remainder(vocab).tolist()])
    check(logits, logits.argmax(-1).tolist())


def test_of_ties_the_smaller_id_comes_first() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0]]).expand(5, -1)
    assert chosen(logits, [0, 1, 2, 3, 4])[1].tolist() == [5, 1, 3, 2, 4]
    check(normal(6, 5000).round(), [0, 1, 777, 4095, 4096, 4999])


@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 1e30])
def test_logits_of_any_size(scale: float) -> None:
    logits = normal(4, 500) * scale
    logits[1, :400] = logits[2, 1:] = -math.inf
    check(logits, [3, 450, 0, 499])


def test_what_has_no_probability() -> None:
    logits = torch.zeros(2, 5000)
    logits[0, 4000:] = logits[1, 2:] = -math.inf
    logprobs, ranks = chosen(logits, [4900, 1])
    assert logprobs.tolist() == [-math.inf, pytest.approx(-math.log(2))]
    assert ranks.tolist() == [4901, 2]


@pytest.mark.parametrize("fault", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 4500])
def test_what_is_not_finite_stays_in_its_row(fault: float, place: int) -> None:
    logits, token_ids = normal(3, 5000), [8, 4999, 2500]
    clean = chosen(logits, token_ids)
    logits[1, place] = fault
    logprobs, ranks = chosen(logits, token_ids)
    assert not logprobs[1].isfinite()
    for got, wanted in zip((logprobs, ranks), clean, strict=True):
        assert torch.equal(got[[0, 2]], wanted[[0, 2]])


def test_a_token_outside_of_the_vocabulary_is_no_number() -> None:
    logprobs, _ = chosen(normal(4, 50), [-1, 50, 2**40, 49])
    assert logprobs.isnan().tolist() == [True, True, True, False]


def test_a_row_alone_has_the_bits_that_it_has_in_a_batch() -> None:
    logits, token_ids = normal(5, 9000), [0, 1, 4096, 8999, 5]
    together = chosen(logits, token_ids)
    for row in range(5):
        alone = chosen(logits[[row]], token_ids[row : row + 1])
        assert torch.equal(alone[0], together[0][[row]])
        assert torch.equal(alone[1], together[1][[row]])


def test_no_rows() -> None:
    assert chosen(torch.empty(0, 8), [])[0].shape == (0,)
