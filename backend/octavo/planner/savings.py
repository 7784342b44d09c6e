"""What one stage costs beside another, by their rates alone: no price is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from octavo.planner.cost import MILLION


def machine_s_per_million(tokens_per_s: float) -> float:
    """Seconds of the machine for a million tokens. Times a price per second, they are the cost."""
    return MILLION / tokens_per_s


def cost_ratio(tokens_per_s: float, baseline_tokens_per_s: float) -> float:
    """Cost per token beside the baseline's, on the same machine at the same price."""
    return baseline_tokens_per_s / tokens_per_s


def saving_ratio(tokens_per_s: float, baseline_tokens_per_s: float) -> float:
    """The share of the baseline's cost that is gone; negative if it costs more."""
    return 1 - cost_ratio(tokens_per_s, baseline_tokens_per_s)


@dataclass(frozen=True, slots=True)
class Fall:
    """One step of a waterfall, in shares of the first stage's cost."""

    before: float
    after: float

    @property
    def saved(self) -> float:
        return self.before - self.after


def waterfall(tokens_per_s: Sequence[float]) -> list[Fall]:
    """From the first stage's cost to the last one's: what each has saved adds up to the whole."""
    ratios = [cost_ratio(each, tokens_per_s[0]) for each in tokens_per_s]
    return [Fall(before, after) for before, after in pairwise(ratios)]
