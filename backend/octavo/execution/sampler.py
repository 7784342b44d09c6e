"""From logits to tokens, with each sequence's own parameters and seed."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo import kernels
from octavo.execution.host_copies import sent
from octavo.execution.logprobs import TokenLogprobs, token_logprobs
from octavo.kernels.cpu import Library
from octavo.kernels.operators import Operators
from octavo.scheduling.sequence import ScheduledSequence, Sequence, StepPlan

NO_MEMORY = "no memory is left on the device for log probabilities"
NOT_FINITE = "the model's logits are not finite"
# Of a prompt's log probabilities: with a vocabulary of 128,256 they take some 0.3 GB.
_ROWS_AT_ONCE = 256
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
    prompts: Rows[PromptLogprobs]


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """Sampled tokens that may still be under way on a device.

    token_ids [S] int64, is_finite [S] bool: of each taker
    raw: logits of the rows that report log probabilities, before anything was adjusted
    """

    sequences: list[Sequence]
    token_ids: Tensor
    is_finite: Tensor
    faults: dict[int, str]  # of rows for which no token is left
    reporting: list[int]
    raw: Tensor | None
    prompts: Rows["_PromptLogits"]

    @classmethod
    def plain(
        cls, sequences: list[Sequence], token_ids: Tensor, is_finite: Tensor
    ) -> "PendingTokens":
        """Of sequences that want no more than their tokens."""
        return cls(list(sequences), token_ids, is_finite, {}, [], None, ())

    def without_logprobs(self, token_ids: Tensor, is_finite: Tensor) -> SampledTokens:
        """`result` where log probabilities find no memory: a fault for who wants them."""
        prompts = {prompt.sequence for prompt in self.prompts}
        wanting = [
            row
            for row, sequence in enumerate(self.sequences)
            if row in self.reporting or sequence in prompts
        ]
        faults = {**self.faults, **dict.fromkeys(wanting, NO_MEMORY)}
        plain = replace(self, faults=faults, reporting=[], raw=None, prompts=())
        return plain.result(token_ids, is_finite)

    def result(
        self, token_ids: Tensor | None = None, is_finite: Tensor | None = None
    ) -> SampledTokens:
        """Waits for the device, unless both were copied to the host meanwhile."""
        tokens: list[int] = (self.token_ids if token_ids is None else token_ids).tolist()
        finite: list[bool] = (self.is_finite if is_finite is None else is_finite).tolist()
        faults = [None if each else NOT_FINITE for each in finite]
        for row, fault in self.faults.items():
            faults[row] = faults[row] or fault
        logprobs: list[TokenLogprobs | None] = [None] * len(self.sequences)
        if self.raw is not None:
            counts = [self.sequences[row].params.logprobs or 0 for row in self.reporting]
            chosen = [tokens[row] for row in self.reporting]
            entries = token_logprobs(self.raw, chosen, counts)
            for row, entry in zip(self.reporting, entries, strict=True):
                logprobs[row] = entry
        return SampledTokens(tokens, logprobs, faults, [each.logprobs() for each in self.prompts])


class Sampler:
    """Remembers what the parameters of a step's takers ask for, while these are the same."""

    def __init__(self, library: Library | None = None, operators: Operators = kernels) -> None:
        """library: what computes on the CPU; without one `operators` do, on any device."""
        chosen = operators if library is None else library
        self._greedy, self._draw = chosen.greedy, chosen.sample
        self._wishes = _Wishes.of([])

    def is_plain(self, sequences: list[Sequence]) -> bool:
        """Whether what kernels.sample gives is all that these want."""
        if sequences != self._wishes.sequences:
            self._wishes = _Wishes.of(sequences)
        return not self._wishes.reporting and not self._wishes.adjusting

    def sample_plan(self, plan: StepPlan, logits: Tensor) -> PendingTokens:
        """The next token of each taker. logits [N, V] float32 of the plan's tokens whose logits
        are wanted, in its order; may be changed."""
        if not plan.prefills:
            return self.sample(plan.decodes, logits)
        rows = list(range(len(plan.decodes)))  # of each taker's logits
        prompts: list[_PromptLogits] = []
        end = len(rows)
        for chunk in plan.prefills:
            begin, end = end, end + chunk.num_logits
            rows += [end - 1] * len(chunk.takers)
            if chunk.sequence.wants_prompt_logprobs:
                prompts.append(_PromptLogits.of(chunk, logits[begin:end]))
        if not rows:
            nothing = torch.empty(0, dtype=torch.int64, device=logits.device)
            return PendingTokens([], nothing, nothing.bool(), {}, [], None, prompts)
        own = logits if rows == list(range(len(logits))) else logits[sent(rows, logits.device)]
        return self.sample(plan.takers, own, prompts)

    def sample(
        self, sequences: list[Sequence], logits: Tensor, prompts: Rows["_PromptLogits"] = ()
    ) -> PendingTokens:
        """The next token of each sequence. logits [S, V] float32; may be changed."""
        if sequences != self._wishes.sequences:
            self._wishes = _Wishes.of(sequences)
        wishes = self._wishes
        raw = logits[sent(wishes.reporting, logits.device)] if wishes.reporting else None
        chosen, is_finite = self._greedy(logits)
        adjusted = False
        faults: dict[int, str] = {}
        if wishes.adjusting:
            adjusted, faults = _adjust(wishes, logits)
        if wishes.drawing is not None:
            arguments = wishes.drawing.arguments(sequences)
            chosen = self._draw(logits, *(sent(each, logits.device) for each in arguments))
        elif adjusted:
            chosen, _ = self._greedy(logits)
        return PendingTokens(
            wishes.sequences, chosen, is_finite, faults, wishes.reporting, raw, prompts
        )


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Parameters of kernels.sample, a row for each sequence; the greedy ones are among them."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: NDArray[np.uint64]

    @classmethod
    def of(cls, sequences: Rows[Sequence]) -> "_Drawing":
        params = [sequence.params for sequence in sequences]
        return cls(
            torch.tensor([p.temperature for p in params], dtype=torch.float32),
            torch.tensor([p.top_k for p in params], dtype=torch.int64),
            torch.tensor([p.top_p for p in params], dtype=torch.float32),
            torch.tensor([p.min_p for p in params], dtype=torch.float32),
            np.array([(p.seed or 0) % 2**64 for p in params], dtype=np.uint64),
        )

    def arguments(self, sequences: Rows[Sequence]) -> tuple[Tensor, ...]:
        indices = np.array([s.num_output_tokens for s in sequences], dtype=np.uint64)
        uniform = torch.from_numpy(uniform_numbers(self.seeds, indices))
        return self.temperature, self.top_k, self.top_p, self.min_p, uniform


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the parameters of `sequences` ask for beyond the most likely token, by row."""

    sequences: list[Sequence]
    reporting: list[int]  # log probabilities
    adjusting: list[int]  # another logit for some tokens
    drawing: _Drawing | None  # None: all are greedy

    @classmethod
    def of(cls, sequences: list[Sequence]) -> "_Wishes":
        rows = list(enumerate(sequences))
        return cls(
            sequences=list(sequences),
            reporting=[row for row, s in rows if s.params.logprobs is not None],
            adjusting=[row for row, s in rows if _adjusts(s)],
            drawing=None if all(s.params.is_greedy for s in sequences) else _Drawing.of(sequences),
        )


def uniform_numbers(seeds: NDArray[np.uint64], indices: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each (seed, index of the output token), float64.

    Two rounds of SplitMix64's finalizer (Steele et al., 2014), a function of the pair alone:
    the same alone and in a batch, before and after a preemption. 32 bits of it, so that no
    product with a sum of probabilities rounds up to that sum.
    """
    state = seeds
    for addend in (np.uint64(0), indices):
        state = state + (addend + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(32)) / 2.0**32


@dataclass(frozen=True, slots=True)
class _PromptLogits:
    """logits [num_tokens, V] of a chunk of a prompt: those of a token tell about the next one."""

    sequence: Sequence
    first: int
    known: list[int]
    logits: Tensor

    @classmethod
    def of(cls, scheduled: ScheduledSequence, logits: Tensor) -> "_PromptLogits":
        sequence = scheduled.sequence
        first = sequence.num_computed_tokens + 1
        known = sequence.token_ids[first : first + scheduled.num_tokens]
        return cls(sequence, first, known, logits[: len(known)])

    def logprobs(self) -> PromptLogprobs:
        if not self.known:
            return PromptLogprobs(self.sequence, self.first, [])
        count = self.sequence.params.prompt_logprobs or 0
        tokens: list[TokenLogprobs] = []
        for begin in range(0, len(self.known), _ROWS_AT_ONCE):
            known = self.known[begin : begin + _ROWS_AT_ONCE]
            logits = self.logits[begin : begin + _ROWS_AT_ONCE]
            tokens += token_logprobs(logits, known, [count] * len(known))
        return PromptLogprobs(self.sequence, self.first, tokens)


def _adjusts(sequence: Sequence) -> bool:
    params = sequence.params
    return bool(
        params.allowed_token_ids is not None
        or sequence.bad_words
        or params.min_tokens
        or params.logit_bias
        or params.has_penalties
    )


def _adjust(wishes: _Wishes, logits: Tensor) -> tuple[bool, dict[int, str]]:
    """Restricts and penalizes, in place. Returns whether there was anything to do in this step,
    and the faults of rows that are left without a token."""
    adjusted = False
    faults = {}
    for row in wishes.adjusting:
        sequence, own = wishes.sequences[row], logits[row]
        restricted = _restrict(sequence, own)
        if restricted and own.max() == -torch.inf:
            faults[row] = ALL_FORBIDDEN
        penalized = _penalize(sequence, own)
        adjusted |= restricted or penalized
    return adjusted, faults


def _restrict(sequence: Sequence, logits: Tensor) -> bool:
    """Sets the logits [V] of tokens that must not be chosen to −∞, in place. False if there are
    none."""
    allowed, forbidden = sequence.params.allowed_token_ids, _forbidden(sequence)
    if allowed is not None:
        kept = logits[list(allowed)]
        logits.fill_(-torch.inf)
        logits[list(allowed)] = kept
    if forbidden:
        logits[forbidden] = -torch.inf
    return allowed is not None or bool(forbidden)


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


def _penalize(sequence: Sequence, logits: Tensor) -> bool:
    """Adds the sequence's bias to its logits [V] and takes off its penalties, in place. False if
    it has neither."""
    params = sequence.params
    if params.logit_bias:
        ids = list(params.logit_bias)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
    if params.has_penalties:
        seen, count = np.unique(sequence.token_ids, return_counts=True)
        output, times = np.unique(
            sequence.token_ids[sequence.num_prompt_tokens :], return_counts=True
        )
        count[:] = 0
        count[np.searchsorted(seen, output)] = times
        kernels.penalize(
            logits, torch.from_numpy(seen).to(logits.device),
            torch.from_numpy(count).to(logits.device),
            params.repetition_penalty, params.frequency_penalty, params.presence_penalty,
        )  # fmt: skip
    return bool(params.logit_bias) or params.has_penalties
