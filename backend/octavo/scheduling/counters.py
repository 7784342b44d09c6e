"""What the scheduler counts, and what it says of a preemption."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from octavo.scheduling.block_allocator import BlockKey
from octavo.scheduling.block_reuse import Reuse
from octavo.scheduling.sequence import PreemptionKind, Sequence

log = logging.getLogger(__name__)

POOL = "pool"  # where a prefix is found, beside the tiers

# preemption: what a preempted sequence had computed and did not find again. eviction: of a prompt,
# what the prefix cache had not long ago. tier_loss: what a tier was known to hold and did not give.
RecomputeCause = Literal["preemption", "eviction", "tier_loss"]


@dataclass(slots=True)
class SchedulerCounters:
    """Running totals."""

    preemptions: Counter[PreemptionKind] = field(default_factory=Counter)
    recomputed_tokens: Counter[RecomputeCause] = field(default_factory=Counter)
    prefill_chunks: int = 0
    copied_blocks: int = 0
    saved_blocks: int = 0
    loaded_blocks: int = 0
    # Of prompts that began to run with the prefix cache on. A sequence's own recompute counts in
    # neither.
    prefix_query_tokens: int = 0
    prefix_hit_tokens: Counter[str] = field(default_factory=Counter)  # by where they were found

    def count_return(self, sequence: Sequence, reuse: Reuse, block_size: int) -> None:
        """A preempted sequence runs again."""
        assert sequence.loss is not None
        num_missing = max(sequence.loss.num_tokens - reuse.num_tokens, 0)
        num_lost = min(reuse.num_undelivered * block_size, num_missing)
        self.recomputed_tokens["tier_loss"] += num_lost
        self.recomputed_tokens["preemption"] += num_missing - num_lost
        sources = "+".join(dict.fromkeys(reuse.sources)) or "no tier"
        report_preemption(
            sequence,
            f"it is back with {len(reuse.table)} blocks of the pool and {len(reuse.rows)} of "
            f"{sources}, {num_missing} tokens are computed again",
        )

    def count_prefix(
        self,
        sequence: Sequence,
        reuse: Reuse,
        block_size: int,
        was_evicted: Callable[[BlockKey], bool],
    ) -> None:
        """A sequence that uses the prefix cache runs for the first time."""
        sequence.num_cached_tokens = reuse.num_tokens
        self.prefix_query_tokens += sequence.num_prompt_tokens
        self.prefix_hit_tokens[POOL] += len(reuse.table) * block_size
        for source in reuse.sources:
            self.prefix_hit_tokens[source] += block_size
        num_lost = reuse.num_undelivered
        self.recomputed_tokens["tier_loss"] += num_lost * block_size
        rest = reuse.contents[reuse.num_blocks + num_lost :]
        evicted = itertools.takewhile(lambda content: was_evicted(content.key), rest)
        self.recomputed_tokens["eviction"] += sum(len(content.token_ids) for content in evicted)


def report_preemption(sequence: Sequence, end: str) -> None:
    """One line for each: who, why, what it cost, how it ended."""
    loss = sequence.loss
    assert loss is not None
    log.debug(
        "request %d.%d (priority %d) was preempted (%s, its preemption %d) because %s: %d computed "
        "tokens gave way; %s",
        sequence.request_id, sequence.index, sequence.params.priority, loss.kind,
        sequence.num_preemptions, loss.cause, loss.num_tokens, end,
    )  # fmt: skip
