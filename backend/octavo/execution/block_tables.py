"""The block tables of a step's sequences as one array, which is kept from step to step."""

from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from octavo.scheduling.sequence import Sequence

# Columns are added so many at a time: a table that grows moves all of them once in as many blocks.
_COLUMNS = 32


class BlockTables:
    """A row for each sequence of the last step. Most steps have the same sequences as the one
    before, and few of these another table: what has not changed is not written again."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._sequences: list[Sequence] = []
        self._written: list[list[int]] = []  # the table that each row holds; [] if none yet
        self._array = np.zeros((0, 0), dtype=np.int64)

    def of(self, sequences: Rows[Sequence]) -> NDArray[np.int64]:
        """[S, B], contiguous, B at least the longest table; 0 behind a table and for blocks that
        were given back. The next call may write to the same memory."""
        widest = max([len(sequence.block_table) for sequence in sequences])
        if sequences != self._sequences or widest > self._array.shape[1]:
            self._arrange(list(sequences), widest)
        for row, sequence in enumerate(sequences):
            if self._written[row] != sequence.block_table:
                self._write(row, sequence)
        return self._array

    def _arrange(self, sequences: list[Sequence], widest: int) -> None:
        """A new array with room for `widest` blocks, and what is known of `sequences` in it."""
        old_rows = {sequence: row for row, sequence in enumerate(self._sequences)}
        old, old_written = self._array, self._written
        num_columns = -(-widest // _COLUMNS) * _COLUMNS
        self._sequences = sequences
        self._array = np.zeros((len(sequences), num_columns), dtype=np.int64)
        self._written = [[] for _ in sequences]
        known = [(row, old_rows[s]) for row, s in enumerate(sequences) if s in old_rows]
        if known:
            rows, moved = (list(part) for part in zip(*known, strict=True))
            # Columns that go have blocks of sequences that do, or of tables that are cut.
            kept = min(num_columns, old.shape[1])
            self._array[rows, :kept] = old[moved, :kept]
            for row, old_row in known:
                self._written[row] = old_written[old_row]

    def _write(self, row: int, sequence: Sequence) -> None:
        table = sequence.block_table
        first_to_write = sequence.num_computed_tokens // self.block_size
        assert min(table[first_to_write:], default=0) >= 0, (
            "a block was given back before its tokens were computed"
        )
        self._array[row, : len(table)] = table
        self._array[row, len(table) :] = 0
        np.maximum(self._array[row], 0, out=self._array[row])
        self._written[row] = list(table)
