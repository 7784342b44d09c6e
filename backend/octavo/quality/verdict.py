"""From numbers to one of four words. Arithmetic only, without torch: the command line reads it too.

The accepting test is non-inferiority: a candidate passes if its loss of perplexity is below the
margin with 95 % confidence. Perplexity alone has blind spots, as gains on some tokens hide losses
on others; so a damage screen rejects what has become another model. It accepts nothing:

* mean KL divergence at most 0.05 nats. A candidate within 1 % has about 0.01 if it is merely noisy;
  llama.cpp's 4 bit formats have 0.03 to 0.07 on an 8B model, its 8 bit ones 0.001.
* top-1 agreement at least 85 %. Small models disagree more, as their best tokens lie close
  together: octavo-tiny in plain int4 agrees on 88 %, an 8B model in 4 bits on 93 % or more.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from pydantic import Field

from octavo.config import LARGEST_MARGIN
from octavo.quality.statistics import UNBOUNDED, Bounds, documents_needed

LEAST_DOCUMENTS = 20
LEAST_TOKENS = 2_000
LARGEST_MEAN_KL_NATS = 0.05
LEAST_TOP1_RATIO = 0.85
NO_SIGNAL_RATIO = 0.25  # of the vocabulary, as perplexity; chance is 1


class Outcome(str, Enum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NO_SIGNAL = "no signal"

    @property
    def exit_code(self) -> int:
        return list(Outcome).index(self)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Over all scored tokens of all documents.

    tokens_not_finite: of the candidate; each counts as a loss of twice what chance would lose
    """

    documents: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    vocab_size: int
    baseline_perplexity: float
    candidate_perplexity: float
    loss: Bounds
    mean_kl_nats: float
    top1_ratio: float
    tokens_not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """more_documents: about how many an inconclusive result needs beside those it had; None if it
    needs none, or more than anyone has."""

    outcome: Outcome
    reason: str
    more_documents: int | None = None

    @property
    def line(self) -> str:
        return f"{self.outcome.value.upper()}: {self.reason}"


def judge(numbers: Numbers, margin: float) -> Verdict:
    """The first of the rules that holds."""
    assert 0 < margin <= LARGEST_MARGIN
    if numbers.baseline_perplexity > NO_SIGNAL_RATIO * numbers.vocab_size:
        return Verdict(
            Outcome.NO_SIGNAL,
            f"the baseline's perplexity is {numbers.baseline_perplexity:,.0f} of a vocabulary of "
            f"{numbers.vocab_size:,}: it cannot read this text, so nothing can be lost on it",
        )
    if numbers.documents < LEAST_DOCUMENTS or numbers.tokens < LEAST_TOKENS:
        return _too_little(numbers, margin)
    if damage := damage_found(numbers):
        return Verdict(Outcome.FAIL, f"damaged: {'; '.join(damage)}")
    loss = numbers.loss
    if loss.upper <= margin:
        return Verdict(
            Outcome.PASS,
            f"perplexity loss is at most {loss.upper:+.3%}, within the margin of {percent(margin)} "
            "(95 % one-sided)",
        )
    if loss.lower > margin:
        return Verdict(
            Outcome.FAIL,
            f"perplexity loss is at least {loss.lower:+.3%}, beyond the margin of "
            f"{percent(margin)} (95 % one-sided)",
        )
    needed = documents_needed(loss, margin, numbers.documents)
    more = None if needed is None else _about(max(needed - numbers.documents, 1))
    return Verdict(Outcome.INCONCLUSIVE, _needs(more, loss, margin), more)


def figures(numbers: Numbers, margin: float) -> list[tuple[str, str, str]]:
    """What is shown to people: each figure, its value, and what it has to be."""
    loss, most = numbers.loss, NO_SIGNAL_RATIO * numbers.vocab_size
    return [
        ("perplexity loss", f"{loss.estimate:+.3%}", ""),
        ("  upper bound, 95 %", _bound(loss.upper), f"at most {percent(margin)} passes"),
        ("  lower bound, 95 %", _bound(loss.lower), f"above {percent(margin)} fails"),
        ("mean KL divergence, nats", f"{numbers.mean_kl_nats:.2e}", f"≤ {LARGEST_MEAN_KL_NATS}"),
        ("top-1 agreement", f"{numbers.top1_ratio:.2%}", f"≥ {LEAST_TOP1_RATIO:.0%}"),
        ("baseline's perplexity", f"{numbers.baseline_perplexity:,.4f}", f"≤ {most:,.0f}"),
        ("candidate's perplexity", f"{numbers.candidate_perplexity:,.4f}", ""),
        ("documents", f"{numbers.documents:,}", f"≥ {LEAST_DOCUMENTS}"),
        ("scored tokens", f"{numbers.tokens:,}", f"≥ {LEAST_TOKENS:,}"),
    ]


def percent(margin: float) -> str:
    return f"{100 * margin:g} %"


def _bound(value: float) -> str:
    return "unknown" if value <= -1 or value >= UNBOUNDED else f"{value:+.3%}"


def damage_found(numbers: Numbers) -> tuple[str, ...]:
    """What the damage screen holds against the candidate."""
    found = []
    if numbers.tokens_not_finite:
        found.append(f"{numbers.tokens_not_finite:,} tokens have logits that are no numbers")
    if numbers.mean_kl_nats > LARGEST_MEAN_KL_NATS:
        found.append(
            f"mean KL divergence {numbers.mean_kl_nats:.3g} nats, limit {LARGEST_MEAN_KL_NATS}"
        )
    if numbers.top1_ratio < LEAST_TOP1_RATIO:
        found.append(f"top-1 agreement {numbers.top1_ratio:.1%}, limit {LEAST_TOP1_RATIO:.0%}")
    return tuple(found)


def _too_little(numbers: Numbers, margin: float) -> Verdict:
    per_document = numbers.tokens / numbers.documents
    needed = max(LEAST_DOCUMENTS, math.ceil(LEAST_TOKENS / per_document))
    if numbers.documents > 1:
        needed = max(needed, documents_needed(numbers.loss, margin, numbers.documents) or 0)
    more = _about(needed - numbers.documents)
    return Verdict(
        Outcome.INCONCLUSIVE,
        f"needs about {more:,} more documents: {numbers.documents:,} with {numbers.tokens:,} "
        f"tokens are too few to judge by, whatever they say (at least {LEAST_DOCUMENTS} and "
        f"{LEAST_TOKENS:,})",
        more,
    )


def _needs(more: int | None, loss: Bounds, margin: float) -> str:
    wanted = (
        "the loss is too close to the margin for any number of documents"
        if more is None
        else f"needs about {more:,} more documents"
    )
    return (
        f"{wanted}: perplexity loss is {loss.estimate:+.3%}, between {loss.lower:+.3%} and "
        f"{loss.upper:+.3%}, with the margin of {percent(margin)} in between"
    )


def _about(count: int) -> int:
    """Two digits, rounded up: the estimate is worth no more."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit
