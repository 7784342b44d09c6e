"""What the model is given for one step, as tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.scheduling.sequence import Sequence, StepPlan

# Columns of the tables are a multiple of this, so that tables that grow seldom need others.
_COLUMNS = 16
_GIVEN_BACK = "a block was given back before its tokens were computed"


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, sequence after sequence; the first `num_decodes` sequences have one
    token each, the others a chunk of prompt. T tokens, S sequences, no table longer than B.
    All contiguous and on the CPU.

    token_ids, positions, slot_mapping: [T] int64 (slot −1: the token's keys are not stored)
    block_tables: [S, B] int64; block 0 behind a table and for blocks that were given back
    query_start: [S + 1] int64, where each sequence's tokens begin
    context_lens: [S] int64, computed tokens of each sequence, those of this step included
    sample_indices: [N] int64, the tokens whose logits are wanted
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    query_start: Tensor
    context_lens: Tensor
    sample_indices: Tensor
    num_decodes: int

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
        )


class BatchBuilder:
    """Makes each step's batch; that of the step before, brought up to date, if the same sequences
    decode and nothing else is done.

    In place means few operations. After the model has run, nothing of Python, numpy or torch is in
    the caches, and the first call of each costs some µs; a loop over the sequences is cheap.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._last: _DecodeBatch | None = None

    def build(self, plan: StepPlan) -> ForwardBatch:
        """Valid until the next call."""
        if self._last is not None and self._last.advance(plan):
            return self._last.batch
        batch = ForwardBatch.from_plan(plan, self._block_size)
        self._last = None if plan.prefills else _DecodeBatch(plan, batch, self._block_size)
        return batch


class _DecodeBatch:
    """The batch of a plan of decodes alone, and what is known of its sequences."""

    def __init__(self, plan: StepPlan, batch: ForwardBatch, block_size: int) -> None:
        self.batch = batch
        self._block_size = block_size
        self._sequences = plan.decodes
        self._num_computed = [sequence.num_computed_tokens for sequence in plan.decodes]
        self._tables = [list(sequence.block_table) for sequence in plan.decodes]
        # The same memory as the batch's.
        self._token_ids = batch.token_ids.numpy()
        self._positions = batch.positions.numpy()
        self._slot_mapping = batch.slot_mapping.numpy()
        self._context_lens = batch.context_lens.numpy()
        self._block_tables = batch.block_tables.numpy()

    def advance(self, plan: StepPlan) -> bool:
        """Makes the batch that of `plan`. False if it cannot be: `plan` is not the same sequences
        a token further, or a table has outgrown its row. Then the batch is of no use any more."""
        if plan.prefills or plan.decodes != self._sequences:
            return False
        num_computed = [sequence.num_computed_tokens for sequence in plan.decodes]
        if num_computed != [number + 1 for number in self._num_computed]:
            return False
        self._num_computed = num_computed
        self._token_ids[:] = [sequence.token_ids[-1] for sequence in plan.decodes]
        self._positions += 1
        self._context_lens += 1
        self._slot_mapping += 1  # but for those who begin a block, or have another one now
        for row, sequence in enumerate(plan.decodes):
            if sequence.block_table != self._tables[row] and not self._write_table(row, sequence):
                return False
        return True

    def _write_table(self, row: int, sequence: Sequence) -> bool:
        table, known = sequence.block_table, self._tables[row]
        if not len(known) <= len(table) <= self._block_tables.shape[1]:
            return False
        first = len(known) if table[: len(known)] == known else 0
        known[first:] = table[first:]
        self._block_tables[row, first : len(table)] = [max(block, 0) for block in table[first:]]
        index, offset = divmod(sequence.num_computed_tokens, self._block_size)
        assert table[index] >= 0, _GIVEN_BACK
        self._slot_mapping[row] = table[index] * self._block_size + offset
        return True
