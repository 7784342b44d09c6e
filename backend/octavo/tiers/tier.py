"""What a place for blocks is, seen from Tiers."""

from collections.abc import Callable
from typing import Literal, Protocol

from octavo.tiers.envelope import Keys, Row

FaultKind = Literal["corrupt", "vanished", "full", "timeout", "connection", "refused", "io"]
# Offers a block that is about to go to the next tier; the row is read only if that wants it.
MoveDown = Callable[[bytes, Callable[[], Row | None]], None]


class TierFault(Exception):
    """The tier as a whole does not work; a fault of one block is a miss instead."""

    def __init__(
        self, kind: FaultKind, detail: str, *, writes_only: bool = False, num_stored: int = 0
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.writes_only = writes_only  # it can still be read
        self.num_stored = num_stored  # blocks of a write that went through before the fault


class Tier(Protocol):
    """One thread writes and removes, another reads; anybody may call `holds`, without I/O.

    The last of several keys counts as the one used last.
    """

    name: str
    outlives_engine: bool  # what is in it can be found by others, or after a restart
    is_shared: bool  # others write to it too, so it can hold more than is known here
    capacity_blocks: int

    @property
    def used_bytes(self) -> int: ...
    @property
    def capacity_bytes(self) -> int: ...
    @property
    def room_blocks(self) -> int:
        """How many more it can take before it evicts."""

    def open(self) -> None:
        """Gets it ready, at the start and after a fault. Raises TierFault; ConfigError at the
        start if another engine has it."""

    def holds(self, key: bytes) -> bool: ...
    def read(self, keys: Keys) -> list[Row]:
        """The longest beginning of `keys`, whole and checked. Raises TierFault."""

    def touch(self, keys: Keys) -> None:
        """These have been used. Raises TierFault."""

    def write(self, keys: Keys, rows: list[Row], move_down: MoveDown) -> int:
        """How many it had not; those it has count as used. Raises TierFault."""

    def remove(self, keys: Keys) -> None: ...
    def close(self) -> None: ...
