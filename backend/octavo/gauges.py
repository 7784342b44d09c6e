"""What an engine is like now."""

from __future__ import annotations

import time
from dataclasses import dataclass

from octavo.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """The state at one moment."""

    num_running: int = 0
    num_waiting: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0  # free, with a content that may be found again
    total_blocks: int = 0
    longest_wait_s: float = 0.0  # of the waiting, since arrival or preemption
    # Share of the slots of used blocks that hold no token.
    fragmentation_ratio: float = 0.0

    @classmethod
    def of(cls, scheduler: Scheduler) -> EngineGauges:
        """May be called in the middle of a step."""
        allocator = scheduler.allocator
        running, waiting = list(scheduler.running), list(scheduler.waiting)
        used = allocator.num_used
        # Only the last block of a sequence is not full, and a sequence shares that for a step at
        # most; so what sequences share is not counted twice.
        num_blocks = sum(len(sequence.block_table) for sequence in running)
        filled = sum(sequence.num_computed_tokens for sequence in running)
        empty = max(num_blocks * scheduler.block_size - filled, 0)
        oldest_s = min((s.waiting_since_s for s in waiting), default=None)
        return cls(
            num_running=len(running),
            num_waiting=len(waiting),
            used_blocks=used,
            cached_blocks=allocator.num_cached,
            total_blocks=allocator.num_blocks,
            longest_wait_s=0.0 if oldest_s is None else time.monotonic() - oldest_s,
            fragmentation_ratio=min(empty / (used * scheduler.block_size), 1.0) if used else 0.0,
        )
