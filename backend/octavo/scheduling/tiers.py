"""The tiers of KV memory as the scheduler sees them: where blocks go that leave the pool."""

from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Protocol

from octavo.scheduling.block_allocator import BlockKey

Row = object  # one block's bytes; the scheduler hands it on unseen


class Fetch(Protocol):
    """A reading under way. What arrives is a beginning of `keys`, whole and checked."""

    keys: tuple[BlockKey, ...]
    is_done: bool
    sources: list[str]  # the tier that each row came from

    @property
    def rows(self) -> List[Row]: ...

    def cancel(self) -> None: ...


class Tiers(Protocol):
    """Blocks by key, outside of the pool. No call waits for a slow medium."""

    outlive_engine: bool  # others, or the next start, find what is in some tier

    def held(self, keys: List[BlockKey], /) -> int:
        """The longest beginning of `keys` that is known to be held."""

    def may_hold(self, keys: List[BlockKey], /) -> int:
        """As `held`, and all that a shared tier may have from others."""

    def fetch(self, keys: List[BlockKey], /) -> Fetch:
        """Begins to read."""

    def discard(self, keys: List[BlockKey], /) -> None:
        """Nobody will ask for these."""

    def store_s(self, num_blocks: int, /) -> float:
        """Seconds until so many more blocks are stored, by measured rates."""

    def fetch_s(self, num_blocks: int, /) -> float:
        """Seconds to read so many blocks, by measured rates."""


@dataclass(frozen=True, slots=True)
class AwaitedBlocks:
    """What a waiting sequence will be given."""

    fetch: Fetch
    num_promised: int  # of its keys, that were known to be held
    give_up_at_s: float
