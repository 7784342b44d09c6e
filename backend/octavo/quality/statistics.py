"""How much perplexity a candidate loses, and how sure that is. Arithmetic only.

The unit is the document: tokens of one text share its topic and style, so their differences are not
independent, and a bound that counts tokens would be far too sure of itself.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95  # of each of the two one-sided bounds
_SEED = 20_260_101
_FEW_DOCUMENTS = 50
_NUMBERS_AT_ONCE = 2**22
_MOST_DOCUMENTS = 1_000_000
# An upper bound that says nothing; the lower one is −1, as no perplexity is below 0.
UNBOUNDED = 1e9

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a perplexity loss, as a ratio: 0.01 is a perplexity 1 % above the baseline's.

    Both bounds are one-sided: with 95 % the true loss is below `upper`, with 95 % above `lower`.
    """

    estimate: float
    lower: float
    upper: float


def bound_loss(
    differences: ArrayLike,
    tokens: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = _SEED,
) -> Bounds:
    """differences, tokens: [documents], a document's summed differences of negative log likelihood
    (candidate less baseline, nats) and how many tokens these are of. The loss is
    exp(Σ differences / Σ tokens) − 1.

    The bounds are by bootstrap-t: documents are drawn with replacement, and each draw's distance
    from the mean is taken in the draw's own standard errors. For each bound the document that is
    farthest out on its side counts twice (the two farthest, below 50 documents): what has not been
    seen may be as bad. Without that, losses that few documents bear pass too often: the sample has
    seldom met them (EXPERIMENTS.md has what was compared).
    """
    d, t = np.asarray(differences, np.float64), np.asarray(tokens, np.float64)
    assert d.shape == t.shape and d.ndim == 1 and (t > 0).all()
    mean = float(d.sum() / t.sum())
    estimate = _ratio(mean)
    if len(d) < 2:
        return Bounds(estimate, -1.0, UNBOUNDED)
    above, below = (_repeat_farthest(d, t, mean, side) for side in (1, -1))
    upper = _bound(*above, 1 - confidence, resamples, seed)
    lower = _bound(*below, confidence, resamples, seed)
    return Bounds(estimate, _ratio(min(mean, lower)), _ratio(max(mean, upper)))


def documents_needed(bounds: Bounds, margin: float, documents: int) -> int | None:
    """How many in all would about settle it if the loss is as estimated: a bound's distance shrinks
    with the square root of their number. None: more than anyone has."""
    limit, estimate = math.log1p(margin), math.log1p(bounds.estimate)
    bound = bounds.upper if estimate < limit else bounds.lower
    if bound <= -1 or bound >= UNBOUNDED or estimate == limit:
        return None
    needed = documents * (math.log1p(bound) - estimate) ** 2 / (limit - estimate) ** 2
    return math.ceil(needed) if needed <= _MOST_DOCUMENTS else None


def _ratio(nats: float) -> float:
    return min(math.expm1(min(nats, 100.0)), UNBOUNDED)


def _repeat_farthest(d: Floats, t: Floats, mean: float, side: int) -> tuple[Floats, Floats]:
    count = 2 if len(d) < _FEW_DOCUMENTS else 1
    farthest = np.argsort(side * (d - mean * t))[-count:]
    return np.append(d, d[farthest]), np.append(t, t[farthest])


def _bound(d: Floats, t: Floats, quantile: float, resamples: int, seed: int) -> float:
    """The mean less a quantile of the draws' distances: the low quantile gives the upper bound."""
    count = len(d)
    mean = float(d.sum() / t.sum())
    residuals = d - mean * t
    columns = np.stack([residuals, t, residuals**2, residuals * t, t**2], axis=1)
    _, error = _shift_and_error(columns.sum(0)[None], count)
    if error[0] <= 1e-12 * max(abs(mean), 1e-12):  # all documents lose the same, or nothing
        return mean
    generator = np.random.default_rng(seed)
    at_once = max(1, _NUMBERS_AT_ONCE // count)
    distances = []
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = generator.integers(0, count, (rows, count))
        drawn += count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        shifts, errors = _shift_and_error(times @ columns, count)
        # A draw of one document over and over has no error: it is no nearer than the others.
        distances.append(shifts / np.maximum(errors, 1e-3 * error[0]))
    return mean - float(np.quantile(np.concatenate(distances), quantile)) * float(error[0])


def _shift_and_error(sums: Floats, count: int) -> tuple[Floats, Floats]:
    """Of draws, [draws, 5] sums of `_bound`'s columns: how far their mean lies from the whole
    sample's, and its standard error, as of a ratio of sums."""
    residuals, t, squares, products, t_squares = sums.T
    shifts = residuals / t
    about_own = squares - 2 * shifts * products + shifts**2 * t_squares
    return shifts, np.sqrt(np.maximum(about_own, 0) * count / (count - 1)) / t
