"""Rows that are sampled, and whether their tokens are right, by a distribution in float64."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Sampling(Protocol):
    """A module or a library that has the operator."""

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
        uniform: Tensor, /,
    ) -> Tensor: ...  # fmt: skip


LAST = 1 - 2**-32  # the largest number that the sampler draws by
BOTH_ENDS = torch.tensor([0.0, LAST], dtype=torch.float64)
NEAR = 1e-5  # of floats and their sums, relative


@dataclass(frozen=True)
class Rows:
    """The arguments of sample."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    def __getitem__(self, rows: list[int]) -> "Rows":
        return Rows(*(tensor[rows] for tensor in vars(self).values()))

    def sample(self, operators: Sampling) -> Tensor:
        return operators.sample(*vars(self).values())


def rows_of(
    logits: Tensor,
    uniform: float | Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Rows:
    count = len(logits)
    drawn = torch.as_tensor(uniform, dtype=torch.float64).expand(count).contiguous()
    return Rows(
        logits.contiguous(),
        torch.full((count,), float(temperature)),
        torch.full((count,), top_k),
        torch.full((count,), float(top_p)),
        torch.full((count,), float(min_p)),
        drawn,
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniforms(rows: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, generator=generator, dtype=torch.float64)


def kept_weights(rows: Rows, row: int) -> Tensor:
    """[V] float64: the row's probabilities relative to the largest, zeros where they are cut."""
    wide = rows.logits[row].double()
    weights = ((wide - wide.max()) / rows.temperature[row].double()).exp()
    weights[weights < rows.min_p[row]] = 0
    ordered, order = weights.sort(stable=True, descending=True)
    if rows.top_k[row] > 0:
        ordered[int(rows.top_k[row]) :] = 0
    before = ordered.cumsum(0) - ordered
    cut = before >= rows.top_p[row].double() * ordered.sum()
    if rows.top_p[row] < 1:
        cut[0] = False
        ordered[cut] = 0
    return torch.zeros_like(weights).scatter_(0, order, ordered)


def check(rows: Rows, tokens: Tensor) -> None:
    """Each token's interval of the cumulative distribution contains the row's number, but for
    rounding: of the sums, and of what is so close to a threshold that either side is right."""
    for row, token in enumerate(tokens.tolist()):
        if rows.temperature[row] == 0:
            assert token == rows.logits[row].argmax()
            continue
        kept = kept_weights(rows, row)
        least = float(kept[kept > 0].min())
        all_weights = kept_weights(rows_of(rows.logits[row : row + 1], 0, rows.temperature[row]), 0)
        doubtful = (all_weights - least).abs() <= NEAR * least
        doubtful |= (all_weights - rows.min_p[row]).abs() <= NEAR * rows.min_p[row]
        # Ties are exact, and so is who of them stays.
        doubtful &= all_weights != least
        assert kept[token] > 0 or doubtful[token]
        total = float(kept.sum())
        near = NEAR * total + float(all_weights[doubtful].sum()) + 2**-53 * total
        end = float(kept[: token + 1].sum())
        target = float(rows.uniform[row]) * total
        assert end - float(all_weights[token]) - near <= target <= end + near
