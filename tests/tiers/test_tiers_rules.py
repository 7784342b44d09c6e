"""Host memory above a folder, under any order of stores, fetches, discards, losses, restarts."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.tiers.harness import BLOCK_BYTES, FILE_BYTES, Opened, opened

HOST_BLOCKS, DISK_BLOCKS = 2, 4
NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)


class Storing(RuleBasedStateMachine):
    """What comes back is right: `fetched` compares it with the one content of its key."""

    found: ClassVar[set[str]] = set()

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.stack = ExitStack()
        self.it = self.open()
        self.stored: set[int] = set()

    def open(self) -> Opened:
        return self.stack.enter_context(
            opened(
                host_bytes=HOST_BLOCKS * BLOCK_BYTES,
                disk_path=self.folder,
                disk_bytes=DISK_BLOCKS * FILE_BYTES,
            )
        )

    @rule(numbers=NUMBERS, through=st.booleans())
    def store(self, numbers: list[int], through: bool) -> None:
        self.it.stored(*numbers, written_through=through)
        self.stored |= {*numbers}
        assert self.it.held(numbers[0]) == 1, "the beginning of the newest is there"

    @rule(numbers=NUMBERS)
    def fetch(self, numbers: list[int]) -> None:
        held = self.it.held(*numbers)
        sources = self.it.fetched(*numbers)
        assert len(sources) == held
        assert self.stored.issuperset(numbers[:held]), "it was never stored"
        self.found |= {*sources}

    @rule(numbers=NUMBERS)
    def discard(self, numbers: list[int]) -> None:
        self.it.tiers.discard([number.to_bytes(16, "little") for number in numbers])
        self.it.settle()
        assert all(self.it.held(number) == 0 for number in numbers)
        self.stored -= {*numbers}

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.it = self.open()
        assert self.it.tiers.gauges()["host"].used_bytes == 0

    @rule(number=st.integers(0, 5))
    def lose(self, number: int) -> None:
        for path in self.folder.rglob(f"{number.to_bytes(16, 'little').hex()}.kv"):
            path.unlink()
            assert len(self.it.fetched(number)) <= 1

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "it"):
            gauges = self.it.tiers.gauges()
            assert gauges["host"].used_bytes <= HOST_BLOCKS * BLOCK_BYTES
            files = [path for path in self.folder.rglob("*.kv")]
            assert len(files) <= DISK_BLOCKS and not list(self.folder.rglob("*.tmp"))
            assert all(each.is_up for each in gauges.values())

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.folder)


def test_tiers_keep_their_rules() -> None:
    Storing.found.clear()
    run_state_machine_as_test(
        Storing,
        settings=settings(
            max_examples=80, stateful_step_count=30, deadline=None, derandomize=True, database=None
        ),
    )
    assert Storing.found == {"host", "disk"}
