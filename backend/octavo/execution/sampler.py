"""From logits to tokens, with each sequence's own parameters and seed."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo import kernels
from octavo.execution.logprobs import TokenLogprobs, token_logprobs
from octavo.scheduling.sequence import ScheduledSequence, Sequence, StepPlan

NOT_FINITE = "the model's logits are not finite"
ALL_FORBIDDEN = "no token is left by allowed_token_ids, bad_words and min_tokens"


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of a chunk of one sequence's prompt: `tokens[i]` belongs to prompt token `first` + i."""

    sequence: Sequence
    first: int
    tokens: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One entry for each taker of the plan. `faults` says why a token means nothing."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    faults: list[str | None]
    prompts: list[PromptLogprobs]


def sample_plan(plan: StepPlan, logits: Tensor) -> SampledTokens:
    """The next token of each taker. logits [N, V] float32 of the plan's `num_logits` tokens, in
    its order; may be changed."""
    rows: list[int] = []  # of each taker's logits
    prompts: list[PromptLogprobs] = []
    end = 0
    for scheduled in plan:
        begin, end = end, end + scheduled.num_logits
        rows += [end - 1] * len(scheduled.takers)
        if scheduled.sequence.wants_prompt_logprobs:
            prompts.append(_prompt_logprobs(scheduled, logits[begin:end]))
    takers = plan.takers
    if not takers:
        return SampledTokens([], [], [], prompts)
    own = logits if rows == list(range(len(logits))) else logits[rows]
    return sample_tokens(takers, own, prompts)


def sample_tokens(
    sequences: Rows[Sequence], logits: Tensor, prompts: Rows[PromptLogprobs] = ()
) -> SampledTokens:
    """The next token of each sequence. logits [S, V] float32; may be changed."""
    asking = [row for row, s in enumerate(sequences) if s.params.logprobs is not None]
    raw = logits[asking]
    faults: list[str | None] = [
        None if is_finite else NOT_FINITE for is_finite in logits.amax(-1).isfinite().tolist()
    ]
    if _restrict(sequences, logits):
        for row, best in enumerate(logits.amax(-1).tolist()):
            if best == -torch.inf and faults[row] is None:
                faults[row] = ALL_FORBIDDEN
    _penalize(sequences, logits)
    params = [sequence.params for sequence in sequences]
    token_ids = kernels.sample(
        logits,
        torch.tensor([p.temperature for p in params], dtype=torch.float32),
        torch.tensor([p.top_k for p in params], dtype=torch.int64),
        torch.tensor([p.top_p for p in params], dtype=torch.float32),
        torch.tensor([p.min_p for p in params], dtype=torch.float32),
        torch.from_numpy(
            uniform_numbers([p.seed or 0 for p in params], [s.num_output_tokens for s in sequences])
        ),
    ).tolist()
    logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
    if asking:
        chosen = [token_ids[row] for row in asking]
        counts = [params[row].logprobs or 0 for row in asking]
        for row, entry in zip(asking, token_logprobs(raw, chosen, counts), strict=True):
            logprobs[row] = entry
    return SampledTokens(token_ids, logprobs, faults, list(prompts))


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


def _prompt_logprobs(scheduled: ScheduledSequence, logits: Tensor) -> PromptLogprobs:
    """logits [num_tokens, V]: those of a token tell about the one after it."""
    sequence = scheduled.sequence
    first = sequence.num_computed_tokens + 1
    known = sequence.token_ids[first : first + scheduled.num_tokens]
    if not known:
        return PromptLogprobs(sequence, first, [])
    counts = [sequence.params.prompt_logprobs or 0] * len(known)
    return PromptLogprobs(sequence, first, token_logprobs(logits[: len(known)], known, counts))


def _restrict(sequences: Rows[Sequence], logits: Tensor) -> bool:
    """Sets the logits of tokens that must not be chosen to −∞, in place. False if no sequence
    restricts anything."""
    restricts = False
    for row, sequence in enumerate(sequences):
        allowed, forbidden = sequence.params.allowed_token_ids, _forbidden(sequence)
        if allowed is not None:
            kept = logits[row, list(allowed)]
            logits[row] = -torch.inf
            logits[row, list(allowed)] = kept
        if forbidden:
            logits[row, forbidden] = -torch.inf
        restricts |= allowed is not None or bool(forbidden)
    return restricts


def _forbidden(sequence: Sequence) -> list[int]:
    """Ends before min_tokens, and the last token of a bad word whose others were just put out."""
    forbidden: list[int] = []
    num_output = sequence.num_output_tokens
    if num_output < sequence.params.min_tokens:
        forbidden += sequence.stop_token_ids
    for word in sequence.bad_words:
        length = len(word) - 1
        if (
            length <= num_output
            and tuple(sequence.token_ids[-length:] if length else ()) == word[:-1]
        ):
            forbidden.append(word[-1])
    return forbidden


def _penalize(sequences: Rows[Sequence], logits: Tensor) -> None:
    """Adds each sequence's bias and takes off its penalties, in place."""
    for row, sequence in enumerate(sequences):
        params = sequence.params
        if params.logit_bias:
            ids = list(params.logit_bias)
            logits[row, ids] += torch.tensor(list(params.logit_bias.values()))
        if params.has_penalties:
            seen, count = np.unique(sequence.token_ids, return_counts=True)
            num_prompt = sequence.num_prompt_tokens
            output, times = np.unique(sequence.token_ids[num_prompt:], return_counts=True)
            count[:] = 0
            count[np.searchsorted(seen, output)] = times
            kernels.penalize(
                logits[row], torch.from_numpy(seen), torch.from_numpy(count),
                params.repetition_penalty, params.frequency_penalty, params.presence_penalty,
            )  # fmt: skip
