"""What the model is given for one step, as tensors."""

from array import array
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from octavo.execution.host_copies import sent
from octavo.scheduling.sequence import Sequence, StepPlan

# Columns of the tables are a multiple of this, so that tables that grow seldom need others.
_COLUMNS = 16
_GIVEN_BACK = "a block was given back before its tokens were computed"


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, sequence after sequence; the first `num_decodes` sequences have one
    token each, the others a chunk of prompt. T tokens, S sequences, no table longer than B.
    All contiguous, on one device.

    token_ids, positions, slot_mapping: [T] int64 (slot −1: the token's keys are not stored)
    block_tables: [S, B] int64; block 0 behind a table and for blocks that were given back
    query_start: [S + 1] int64, where each sequence's tokens begin
    context_lens: [S] int64, computed tokens of each sequence, those of this step included
    sample_indices: [N] int64, rising, the tokens whose logits are wanted
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    sample_indices: Tensor
    num_decodes: int
    max_query_len: int  # tokens of the longest chunk; 1 without any

    def to(self, device: torch.device) -> "ForwardBatch":
        """The same on `device`, under way behind what was launched there before."""
        return replace(
            self,
            token_ids=sent(self.token_ids, device),
            positions=sent(self.positions, device),
            slot_mapping=sent(self.slot_mapping, device),
            block_tables=sent(self.block_tables, device),
            query_start=sent(self.query_start, device),
            context_lens=sent(self.context_lens, device),
            sample_indices=sent(self.sample_indices, device),
        )

    @classmethod
    def from_plan(cls, plan: StepPlan, block_size: int) -> "ForwardBatch":
        sequences = plan.decodes + [chunk.sequence for chunk in plan.prefills]
        lengths = [1] * len(plan.decodes) + [chunk.num_tokens for chunk in plan.prefills]
        query_start = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum(lengths, out=query_start[1:])
        token_ids = [sequence.token_ids[-1] for sequence in plan.decodes]
        sample_indices = list(range(len(token_ids)))
        for chunk in plan.prefills:
            begin = chunk.sequence.num_computed_tokens
            token_ids += chunk.sequence.token_ids[begin : begin + chunk.num_tokens]
            sample_indices += range(len(token_ids) - chunk.num_logits, len(token_ids))

        widest = max(len(sequence.block_table) for sequence in sequences)
        width = (widest // _COLUMNS + 1) * _COLUMNS
        block_tables = np.zeros((len(sequences), width), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            block_tables[row, : len(sequence.block_table)] = sequence.block_table
        computed = np.array([s.num_computed_tokens for s in sequences], dtype=np.int64)
        rows = np.repeat(np.arange(len(sequences)), lengths)
        positions = np.arange(query_start[-1]) + (computed - query_start[:-1])[rows]
        blocks = block_tables[rows, positions // block_size]
        assert (blocks >= 0).all(), _GIVEN_BACK
        np.maximum(block_tables, 0, out=block_tables)
        return cls(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=torch.from_numpy(positions),
            slot_mapping=torch.from_numpy(blocks * block_size + positions % block_size),
            block_tables=torch.from_numpy(block_tables),
            query_start=torch.from_numpy(query_start),
            context_lens=torch.from_numpy(computed + lengths),
            sample_indices=torch.tensor(sample_indices, dtype=torch.int64),
            num_decodes=len(plan.decodes),
            max_query_len=max(lengths),
        )


class BatchBuilder:
    """Makes each step's batch; that of the step before, brought up to date, if the same sequences
    decode and nothing else is done."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._last: _DecodeBatch | None = None

    def build(self, plan: StepPlan) -> ForwardBatch:
        """Valid until the next call."""
        if self._last is not None and self._last.advance(plan):
            return self._last.batch
        batch = ForwardBatch.from_plan(plan, self._block_size)
        if plan.prefills:
            self._last = None
            return batch
        self._last = _DecodeBatch(plan, batch, self._block_size)
        return self._last.batch


class _DecodeBatch:
    """The batch of a plan of decodes alone, in memory that lists can be written to at once.

    After the model has run, little of Python's, numpy's and torch's code is in the caches, and the
    first call of an operation costs 10 to 30 µs (an addition of arrays, say), where a loop over 32
    sequences costs 5. So this is lists, and one write.
    """

    def __init__(self, plan: StepPlan, batch: ForwardBatch, block_size: int) -> None:
        self._block_size = block_size
        self._sequences = plan.decodes
        self._num_computed = batch.positions.tolist()
        self._slots = batch.slot_mapping.tolist()
        self._tables = [list(sequence.block_table) for sequence in plan.decodes]
        columns = (batch.token_ids, batch.positions, batch.context_lens, batch.slot_mapping)
        self._numbers, numbers = _shared(torch.stack(columns))
        self._width = batch.block_tables.shape[1]
        self._blocks, block_tables = _shared(batch.block_tables)
        self.batch = replace(
            batch, token_ids=numbers[0], positions=numbers[1], context_lens=numbers[2],
            slot_mapping=numbers[3], block_tables=block_tables,
        )  # fmt: skip

    def advance(self, plan: StepPlan) -> bool:
        """Makes the batch that of `plan`. False if it cannot be: `plan` is not the same sequences
        a token further, or a table has outgrown its row. Then the batch is of no use any more."""
        if plan.prefills or plan.decodes != self._sequences:
            return False
        num_computed = [sequence.num_computed_tokens for sequence in plan.decodes]
        if num_computed != [number + 1 for number in self._num_computed]:
            return False
        self._num_computed = num_computed
        self._slots = [slot + 1 for slot in self._slots]  # of those whose table has not changed
        for row, sequence in enumerate(plan.decodes):
            if sequence.block_table != self._tables[row] and not self._write_table(row, sequence):
                return False
        token_ids = [sequence.token_ids[-1] for sequence in plan.decodes]
        context_lens = [number + 1 for number in num_computed]
        self._numbers[:] = array("q", token_ids + num_computed + context_lens + self._slots)
        return True

    def _write_table(self, row: int, sequence: Sequence) -> bool:
        table, known = sequence.block_table, self._tables[row]
        if not len(known) <= len(table) <= self._width:
            return False
        first = len(known) if table[: len(known)] == known else 0
        known[first:] = table[first:]
        begin, end = row * self._width + first, row * self._width + len(table)
        self._blocks[begin:end] = array("q", [max(block, 0) for block in table[first:]])
        index, offset = divmod(sequence.num_computed_tokens, self._block_size)
        assert table[index] >= 0, _GIVEN_BACK
        self._slots[row] = table[index] * self._block_size + offset
        return True


def _shared(numbers: Tensor) -> tuple["array[int]", Tensor]:
    """A copy of int64 `numbers` as an array, and as a tensor in the array's memory."""
    memory = array("q", numbers.numpy().tobytes())
    return memory, torch.frombuffer(memory, dtype=torch.int64).view(numbers.shape)
