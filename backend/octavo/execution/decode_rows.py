"""The decoding sequences as a device knows them: a row each, kept from step to step.

Only what has changed is sent to the device, and the token that a step samples stays there for the
next one, so that the host need not know it to launch that.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.execution.host_copies import sent
from octavo.scheduling.sequence import Sequence

# Rows of `numbers`.
_POSITION, _CONTEXT_LEN, _SLOT, _OUTPUT_INDEX = range(4)
_EMPTY = np.array([[0], [0], [-1], [0]])


@dataclass(frozen=True, slots=True)
class RowParams:
    """Arguments of kernels.sample, an element for each row, and the seeds of its numbers."""

    temperature: Tensor  # float32
    top_k: Tensor  # int64
    top_p: Tensor  # float32
    min_p: Tensor  # float32
    seeds: Tensor  # int64

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> "RowParams":
        def filled(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((num_rows,), value, dtype=dtype, device=device)

        whole, wide = torch.float32, torch.int64
        return cls(filled(0, whole), filled(0, wide), filled(1, whole), filled(0, whole),
                   filled(0, wide))  # fmt: skip


class DecodeRows:
    """R rows, of which the lowest ones are in use.

    latest: [R] int64, the token that was sampled last for the row's sequence
    numbers: [4, R] int64: position, context length, slot and index of the output token of the next
        step; of a row that is not in use 0, 0, −1, 0
    block_tables: [R, B] int64, block 0 behind a table
    """

    def __init__(self, num_rows: int, max_blocks: int, block_size: int, device: torch.device):
        self.num_rows = num_rows
        self.device = device
        self.latest = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.numbers = torch.from_numpy(np.repeat(_EMPTY, num_rows, 1)).to(device)
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int64, device=device)
        self.params = RowParams.empty(num_rows, device)
        self._block_size = block_size
        self._sequences: list[Sequence | None] = [None] * num_rows
        self._row_of: dict[Sequence, int] = {}
        self._tables: list[list[int]] = [[] for _ in range(num_rows)]  # as the device has them
        self._new: list[int] = []  # rows whose parameters the device does not have

    def add(self, sequences: list[Sequence], token_ids: Tensor) -> None:
        """Sequences of which the first token was sampled: token_ids [n] int64 on the device."""
        for sequence in sequences:
            if sequence not in self._row_of:
                self._place(sequence, self._sequences.index(None))
        rows = [self._row_of[sequence] for sequence in sequences]
        self.latest.index_copy_(0, self._sent(rows), token_ids)

    def keep(self, decodes: list[Sequence]) -> None:
        """Makes `decodes` the lowest rows, in any order, and frees all others."""
        kept = set(decodes)
        for sequence in [s for s in self._row_of if s not in kept]:
            self._sequences[self._row_of.pop(sequence)] = None
        moves = []
        for sequence, row in list(self._row_of.items()):
            if row >= len(decodes):
                self._sequences[row] = None
                self._place(sequence, self._sequences.index(None))
                moves.append((row, self._row_of[sequence]))
        if moves:
            sources, targets = (self._sent(list(rows)) for rows in zip(*moves, strict=True))
            self.latest.index_copy_(0, targets, self.latest.index_select(0, sources))
        # One that was preempted, and of whose tokens a last chunk has left but one.
        known = [sequence for sequence in decodes if sequence not in self._row_of]
        if known:
            assert not any(sequence.awaits_token for sequence in known)
            self.add(known, self._sent([sequence.token_ids[-1] for sequence in known]))

    def rows(self, sequences: list[Sequence]) -> Tensor:
        """[n] int64 on the device."""
        return self._sent(self.row_numbers(sequences))

    def row_numbers(self, sequences: list[Sequence]) -> list[int]:
        return [self._row_of[sequence] for sequence in sequences]

    def prepare(self, decodes: list[Sequence]) -> None:
        """Sends what the next step of all rows needs: they are `decodes`, as `keep` left them."""
        host = np.repeat(_EMPTY, self.num_rows, 1)
        rows = self.row_numbers(decodes)
        computed = [sequence.num_computed_tokens for sequence in decodes]
        host[_POSITION, rows] = computed
        host[_CONTEXT_LEN, rows] = np.array(computed) + 1
        host[_SLOT, rows] = [self._slot(s, n) for s, n in zip(decodes, computed, strict=True)]
        host[_OUTPUT_INDEX, rows] = [sequence.num_output_tokens for sequence in decodes]
        self.numbers.copy_(sent(torch.from_numpy(host), self.device))
        self._send_tables(decodes, rows)
        self._send_params()

    def _slot(self, sequence: Sequence, position: int) -> int:
        block = sequence.block_table[position // self._block_size]
        assert block >= 0, "a block was given back before its tokens were computed"
        return block * self._block_size + position % self._block_size

    def _place(self, sequence: Sequence, row: int) -> None:
        self._sequences[row] = sequence
        self._row_of[sequence] = row
        self._tables[row] = []
        self._new.append(row)

    def _send_tables(self, decodes: list[Sequence], rows: list[int]) -> None:
        places: list[int] = []
        blocks: list[int] = []
        width = self.block_tables.shape[1]
        for sequence, row in zip(decodes, rows, strict=True):
            table, known = sequence.block_table, self._tables[row]
            if table == known:
                continue
            same = len(known) if table[: len(known)] == known else 0
            places.extend(range(row * width + same, row * width + len(table)))
            blocks.extend(max(block, 0) for block in table[same:])
            self._tables[row] = list(table)
        if places:
            self.block_tables.view(-1).index_copy_(0, self._sent(places), self._sent(blocks))

    def _send_params(self) -> None:
        rows = [row for row in dict.fromkeys(self._new) if self._sequences[row] is not None]
        self._new = []
        if not rows:
            return
        all_params = [each.params for row in rows if (each := self._sequences[row]) is not None]
        index = self._sent(rows)
        for target, values in (
            (self.params.temperature, [p.temperature for p in all_params]),
            (self.params.top_k, [p.top_k for p in all_params]),
            (self.params.top_p, [p.top_p for p in all_params]),
            (self.params.min_p, [p.min_p for p in all_params]),
            (self.params.seeds, [_signed(p.seed or 0) for p in all_params]),
        ):
            own = torch.tensor(values, dtype=target.dtype)
            target.index_copy_(0, index, sent(own, self.device))

    def _sent(self, values: list[int]) -> Tensor:
        return sent(values, self.device)


def _signed(seed: int) -> int:
    """A seed's lowest 64 bits as an int64."""
    seed %= 2**64
    return seed - 2**64 if seed >= 2**63 else seed
