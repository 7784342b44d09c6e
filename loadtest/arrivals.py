"""When the requests of an open-loop run are to be sent: decided before the run, from a seed."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Arrival = Literal["poisson", "gamma", "constant"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)

# Salts the seed: the requests' contents are drawn from the same one.
_STREAM = 0xA221


def schedule(
    arrival: Arrival,
    *,
    rate: float,
    duration_s: float,
    seed: int,
    burstiness: float = 1.0,
) -> NDArray[np.float64]:
    """Times in seconds from the start, ascending, all below `duration_s`.

    `rate` is in requests per second. Gaps have the mean 1/rate and

    - constant: no variation; the first arrival is at 0;
    - poisson: an exponential distribution, whose coefficient of variation (CV) is 1;
    - gamma: a gamma distribution of shape `burstiness`, so that the CV is 1/sqrt(burstiness):
      below 1 is burstier than Poisson, above 1 more regular (vLLM's --burstiness).

    Gaps are added up from the start, so a late arrival does not move those after it.
    Raises ValueError for a rate, duration or burstiness that is not positive and finite.
    """
    for name, value in (("rate", rate), ("duration", duration_s), ("burstiness", burstiness)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, must be above 0")
    if arrival == "constant":
        return np.arange(math.ceil(rate * duration_s), dtype=np.float64) / rate
    shape = 1.0 if arrival == "poisson" else burstiness
    generator = np.random.default_rng([_STREAM, seed])
    # Drawn in blocks of one size: a longer run begins with the arrivals of a shorter one.
    blocks: list[NDArray[np.float64]] = []
    end_s = 0.0
    while end_s < duration_s:
        times = end_s + np.cumsum(generator.gamma(shape, 1 / (rate * shape), size=1024))
        blocks.append(times)
        end_s = float(times[-1])
    every = np.concatenate(blocks)
    return every[every < duration_s]


def partition(count: int, worker: int, workers: int) -> range:
    """The indices of the arrivals that one of several workers sends: every `workers`-th."""
    assert 0 <= worker < workers
    return range(worker, count, workers)
