"""A sequence: one request's tokens, its blocks, and how far it has been computed."""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal

from octavo.accounts import Account
from octavo.scheduling.block_allocator import BlockContent, BlockKey, chain_key

if TYPE_CHECKING:
    from octavo.sampling_params import SamplingParams
    from octavo.scheduling.tiers import AwaitedBlocks, Row

MAX_PASSED_OVER = 3  # times that a sequence is preempted or overtaken before it goes first
UNKNOWN_TOKEN = -1  # stands for the token of a step that has not come back yet


class FinishReason(str, Enum):
    STOP = "stop"  # end of sequence, a stop token, or a stop string found by the detokenizer
    LENGTH = "length"  # max_tokens or the context is full
    CANCELLED = "cancelled"  # the client left
    DEADLINE = "deadline"  # deadline_ms passed
    ERROR = "error"  # the model's logits were not finite, or the engine died


PreemptionKind = Literal["swap", "recompute"]


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` holds prompt and output; the first `num_computed_tokens` have their keys and
    values in the blocks of `block_table`. Preemption sets that count back to 0. The last token is
    UNKNOWN_TOKEN while the step that samples it is in flight.

    A request for n sequences begins as one with n − 1 `forks`, which wait for its prompt: once
    that is computed they share its blocks and go their own ways.
    """

    request_id: int
    token_ids: list[int]
    params: "SamplingParams"
    arrival_s: float
    max_len: int  # prompt and output together
    stop_token_ids: frozenset[int] = frozenset()  # end of sequence included, unless ignored
    bad_words: tuple[tuple[int, ...], ...] = ()
    index: int = 0  # among the n of its request
    forks: "list[Sequence]" = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    status: SequenceStatus = SequenceStatus.WAITING
    num_given_back: int = 0  # blocks at the beginning of the table, behind the model's window
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache when it first ran
    held_block_s: float = 0.0  # seconds that blocks of those lay cached, all together
    account: Account = field(default_factory=Account)  # of its request
    root: BlockKey = b""  # what the keys of its blocks begin with
    contents: list[BlockContent] = field(default_factory=list)  # of full blocks, as far as known
    is_counted: bool = False  # as admitted; a step that failed is planned again
    # What a preempted sequence brings along.
    num_preemptions: int = 0
    num_passed_over: int = 0
    waiting_since_s: float = field(init=False)
    loss: "Loss | None" = None  # until it runs again
    awaited: "AwaitedBlocks | None" = None  # what is on its way to it from a tier

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.waiting_since_s = self.arrival_s

    def add_fork(self, params: "SamplingParams") -> None:
        """One more sequence of the request, to begin with this one's prompt."""
        self.forks.append(
            replace(
                self, token_ids=list(self.token_ids), params=params, index=len(self.forks) + 1,
                block_table=[], contents=[], forks=[],
            )
        )  # fmt: skip

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
        known = len(self.token_ids)
        return known - self.num_computed_tokens == 1 and known > self.num_prompt_tokens

    @property
    def awaits_token(self) -> bool:
        """The step that samples its last token is in flight."""
        return self.token_ids[-1] == UNKNOWN_TOKEN

    @property
    def reads_output(self) -> bool:
        """What it samples next depends on its tokens so far beyond the last one."""
        return bool(self.bad_words) or self.params.has_penalties

    @property
    def num_places(self) -> int:
        """Sequences that it is, or will be once its prompt is computed."""
        return 1 + len(self.forks)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.params.prompt_logprobs is not None and self.num_output_tokens == 0

    @property
    def goes_first(self) -> bool:
        return self.num_passed_over >= MAX_PASSED_OVER

    @property
    def order(self) -> tuple[bool, int, float, int, int]:
        """Who goes first: who was passed over too often, then priority, then arrival. A preempted
        sequence keeps its place."""
        params = self.params
        return (not self.goes_first, params.priority, self.arrival_s, self.request_id, self.index)

    def contents_of(self, num_tokens: int, block_size: int) -> list[BlockContent]:
        """What the blocks hold that the first `num_tokens` tokens fill."""
        for index in range(len(self.contents), num_tokens // block_size):
            parent = self.contents[-1].key if index else self.root
            tokens = tuple(self.token_ids[index * block_size : (index + 1) * block_size])
            self.contents.append(BlockContent(chain_key(parent, tokens), tokens))
        return self.contents[: num_tokens // block_size]

    def finish_reason_at(self, index: int) -> FinishReason | None:
        """Why the sequence ends with its token `index`, if it does."""
        length = index + 1
        if self.token_ids[index] in self.stop_token_ids and (
            length - self.num_prompt_tokens > self.params.min_tokens
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if length >= self.max_len else None


@dataclass(frozen=True, slots=True)
class Loss:
    """What a preemption has taken from a sequence, and how it is to come back."""

    kind: "PreemptionKind"
    num_tokens: int  # that were computed
    cause: str
    keys: tuple[BlockKey, ...] = ()  # of what is to be swapped
    # Swapped while it decoded: its last block, which was not full.
    last_block: BlockContent | None = None


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A chunk of a prompt: `num_tokens` of `sequence`, from its first uncomputed one on."""

    sequence: Sequence
    num_tokens: int

    @property
    def needs_sample(self) -> bool:
        """The step reaches the last known token, so its logits give the next one."""
        return self.num_tokens == self.sequence.num_pending_tokens

    @property
    def num_logits(self) -> int:
        """How many of its last tokens' logits are wanted."""
        if self.sequence.wants_prompt_logprobs:
            return self.num_tokens
        return int(self.needs_sample)

    @property
    def takers(self) -> list[Sequence]:
        """Who gets a token of this step: with the end of a prompt all that begin with it."""
        if not self.needs_sample:
            return []
        return [self.sequence, *self.sequence.forks]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes: first one token, the last known, of each sequence of `decodes`, then
    the chunks of prompts of `prefills`. Before that, in this order:

    block_saves: blocks whose content goes to the tiers by its key, since they are evicted
    block_writes: blocks of prompts, whose content goes to the tiers that outlive the engine
    block_copies: (from, to), blocks that were shared by sequences and are now written to
    block_loads: (to, what a tier held)
    """

    decodes: list[Sequence]
    prefills: list[ScheduledSequence]
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    block_saves: list[tuple[int, BlockKey]] = field(default_factory=list)
    block_writes: list[tuple[int, BlockKey]] = field(default_factory=list)
    block_loads: "list[tuple[int, Row]]" = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)

    @property
    def takers(self) -> list[Sequence]:
        """Who gets a token of this step, in the order of its logits."""
        return self.decodes + [taker for chunk in self.prefills for taker in chunk.takers]

    @property
    def num_prefill_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.prefills)


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step that has been given to the runner, as it was booked then.

    takers: each with the index of the token that the step samples for it
    advanced: each sequence with its computed tokens before and after
    """

    takers: list[tuple[Sequence, int]]
    advanced: list[tuple[Sequence, int, int]]
