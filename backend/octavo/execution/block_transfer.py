"""Moves blocks as a plan says, before its step computes."""

import time
from typing import TYPE_CHECKING

from octavo.execution.kv_cache import KVCache
from octavo.scheduling.sequence import StepPlan

if TYPE_CHECKING:
    from octavo.tiers import Tiers

_KEPT_AT_ONCE = 64  # blocks that are copied out of the pool in one go when the engine ends


class BlockTransfer:
    """Out of the pool to the tiers, within the pool, and from the tiers into it."""

    def __init__(self, kv_cache: KVCache, tiers: "Tiers | None") -> None:
        self._kv_cache = kv_cache
        self._tiers = tiers

    def run(self, plan: StepPlan) -> None:
        """In this order, since what is saved may be written over by what is copied or loaded."""
        self._store(plan.block_saves, written_through=False)
        self._store(plan.block_writes, written_through=True)
        self._kv_cache.copy_blocks(plan.block_copies)
        if plan.block_loads:
            blocks, rows = zip(*plan.block_loads, strict=True)
            self._kv_cache.write_blocks(list(blocks), list(rows))

    def keep(self, blocks: list[tuple[int, bytes]], timeout_s: float) -> int:
        """Stores what a tier does not have yet of `blocks`, (block, key), the first ones first, as
        far as the time goes: for the next start. Returns how many."""
        assert self._tiers is not None
        until_s = time.monotonic() + timeout_s
        missing = [(block, key) for block, key in blocks if not self._tiers.held([key])]
        for begin in range(0, len(missing), _KEPT_AT_ONCE):
            self._store(missing[begin : begin + _KEPT_AT_ONCE], written_through=False)
            if not self._tiers.flush(max(until_s - time.monotonic(), 0.0)):
                return begin
        return len(missing)

    def _store(self, blocks: list[tuple[int, bytes]], *, written_through: bool) -> None:
        if blocks:
            assert self._tiers is not None
            ids, keys = zip(*blocks, strict=True)
            rows = self._kv_cache.read_blocks(list(ids))
            self._tiers.store(list(keys), rows, written_through=written_through)
