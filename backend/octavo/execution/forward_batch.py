"""What the model is given for one step, as tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.execution.block_tables import BlockTables
from octavo.scheduling.sequence import StepPlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, sequence after sequence; the first `num_decodes` sequences have one
    token each, the others a chunk of prompt. T tokens, S sequences, B blocks or fewer each.

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
    def from_plan(cls, plan: StepPlan, tables: BlockTables) -> "ForwardBatch":
        """On the CPU; valid until `tables` are asked for the next step's."""
        num_decodes = len(plan.decodes)
        sequences = plan.decodes + [chunk.sequence for chunk in plan.prefills]
        block_tables = tables.of(sequences)
        lengths = np.ones(len(sequences), dtype=np.int64)
        lengths[num_decodes:] = [chunk.num_tokens for chunk in plan.prefills]
        computed = np.array([s.num_computed_tokens for s in sequences], dtype=np.int64)
        query_start = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum(lengths, out=query_start[1:])
        rows = np.repeat(np.arange(len(sequences)), lengths)
        positions = np.arange(query_start[-1]) + (computed - query_start[:-1])[rows]
        blocks, offsets = np.divmod(positions, tables.block_size)
        slot_mapping = block_tables[rows, blocks] * tables.block_size + offsets

        token_ids = [sequence.token_ids[-1] for sequence in plan.decodes]
        sample_indices = list(range(num_decodes))
        for chunk in plan.prefills:
            begin = chunk.sequence.num_computed_tokens
            token_ids += chunk.sequence.token_ids[begin : begin + chunk.num_tokens]
            sample_indices += range(len(token_ids) - chunk.num_logits, len(token_ids))
        return cls(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=torch.from_numpy(positions),
            slot_mapping=torch.from_numpy(slot_mapping),
            block_tables=torch.from_numpy(block_tables),
            query_start=torch.from_numpy(query_start),
            context_lens=torch.from_numpy(computed + lengths),
            sample_indices=torch.tensor(sample_indices, dtype=torch.int64),
            num_decodes=num_decodes,
        )
