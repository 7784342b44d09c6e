"""From logits to tokens, with each sequence's own parameters and seed."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo import kernels
from octavo.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before temperature and cuts.

    `rank` 1 is the most likely token; `top` has (token id, log probability), best first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One entry for each sequence that needed a token. `is_finite` is false where the logits
    were not, so that the token means nothing."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    is_finite: list[bool]


NOTHING_SAMPLED = SampledTokens([], [], [])


def sample_tokens(sequences: Rows[Sequence], logits: Tensor) -> SampledTokens:
    """The next token of each sequence. logits [S, V] float32; may be changed."""
    raw = _rows_with_logprobs(sequences, logits)
    _forbid_early_stops(sequences, logits)
    params = [sequence.params for sequence in sequences]
    token_ids = kernels.sample(
        logits,
        torch.tensor([p.temperature for p in params], dtype=torch.float32),
        torch.tensor([p.top_k for p in params], dtype=torch.int64),
        torch.tensor([p.top_p for p in params], dtype=torch.float32),
        torch.from_numpy(
            uniform_numbers([p.seed or 0 for p in params], [s.num_output_tokens for s in sequences])
        ),
    )
    logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
    for row, row_logits in raw.items():
        logprobs[row] = _token_logprobs(
            row_logits, int(token_ids[row]), sequences[row].params.logprobs or 0
        )
    return SampledTokens(token_ids.tolist(), logprobs, logits.amax(-1).isfinite().tolist())


def uniform_numbers(seeds: Rows[int], indices: Rows[int]) -> NDArray[np.float64]:
    """A number in [0, 1) for each (seed, index of the output token), float64.

    Two rounds of SplitMix64's finalizer (Steele et al., 2014), a function of the pair alone:
    the same alone and in a batch, before and after a preemption. 32 bits of it, so that no
    product with a sum of probabilities rounds up to that sum.
    """
    state = np.array([seed % 2**64 for seed in seeds], dtype=np.uint64)
    for addend in (np.uint64(0), np.array(indices, dtype=np.uint64)):
        state = state + (addend + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(32)) / 2.0**32


def _rows_with_logprobs(sequences: Rows[Sequence], logits: Tensor) -> dict[int, Tensor]:
    return {
        row: logits[row].clone()
        for row, sequence in enumerate(sequences)
        if sequence.params.logprobs is not None
    }


def _forbid_early_stops(sequences: Rows[Sequence], logits: Tensor) -> None:
    for row, sequence in enumerate(sequences):
        if sequence.num_output_tokens < sequence.params.min_tokens and sequence.stop_token_ids:
            logits[row, list(sequence.stop_token_ids)] = -torch.inf


def _token_logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """Of equal tokens the one with the smaller id comes first, so that ranks are distinct."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs[token_id]
    num_before = (logprobs > chosen).sum() + (logprobs[:token_id] == chosen).sum()
    top: tuple[tuple[int, float], ...] = ()
    if count > 0:
        least = logprobs.topk(min(count, len(logprobs))).values[-1]
        ids = (logprobs >= least).nonzero().squeeze(1)  # ascending; the sort keeps ties so
        values, order = logprobs[ids].sort(stable=True, descending=True)
        top = tuple(zip(ids[order].tolist(), values.tolist(), strict=True))[:count]
    return TokenLogprobs(logprob=float(chosen), rank=int(num_before) + 1, top=top)
