"""A sequence: one request's tokens, its blocks, and how far it has been computed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.sampling_params import SamplingParams


class FinishReason(str, Enum):
    STOP = "stop"  # end of sequence, a stop token, or a stop string found by the detokenizer
    LENGTH = "length"  # max_tokens or the context is full
    CANCELLED = "cancelled"  # the client left
    DEADLINE = "deadline"  # deadline_ms passed
    ERROR = "error"  # the model's logits were not finite, or the engine died


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` holds prompt and output; the first `num_computed_tokens` have their keys and
    values in the blocks of `block_table`. Preemption by recompute sets that count back to 0."""

    request_id: int
    token_ids: list[int]
    params: "SamplingParams"
    arrival_s: float
    max_len: int  # prompt and output together
    stop_token_ids: frozenset[int] = frozenset()  # end of sequence included, unless ignored
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    status: SequenceStatus = SequenceStatus.WAITING
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def is_running(self) -> bool:
        return self.status is SequenceStatus.RUNNING

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending_tokens(self) -> int:
        """Known tokens not computed yet: 1 in decode, more in prefill."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        return self.num_pending_tokens == 1 and self.num_output_tokens > 0

    @property
    def order(self) -> tuple[int, float, int]:
        """Who goes first: priority, then arrival. A preempted sequence keeps its place."""
        return (self.params.priority, self.arrival_s, self.request_id)

    def finish_reason_after(self, token_id: int) -> FinishReason | None:
        """Why the sequence ends now that `token_id` is its last token, if it does."""
        if token_id in self.stop_token_ids and self.num_output_tokens > self.params.min_tokens:
            return FinishReason.STOP
        if len(self.token_ids) >= self.max_len:
            return FinishReason.LENGTH
        return None


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """`num_tokens` tokens of `sequence`, from its first uncomputed one, run in this step."""

    sequence: Sequence
    num_tokens: int

    @property
    def needs_sample(self) -> bool:
        """The step reaches the last known token, so its logits give the next one."""
        return self.num_tokens == self.sequence.num_pending_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes: decodes first, then chunks of prompts."""

    decodes: list[ScheduledSequence]
    prefills: list[ScheduledSequence]

    def __iter__(self) -> Iterator[ScheduledSequence]:
        yield from self.decodes
        yield from self.prefills

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)

    @property
    def num_prefill_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.prefills)
