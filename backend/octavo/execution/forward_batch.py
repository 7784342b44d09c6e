"""What the model is given for one step, as tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.scheduling.sequence import StepPlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, sequence after sequence; the first `num_decodes` sequences have one
    token each, the others a chunk of prompt. T tokens, S sequences, B blocks at most.

    token_ids, positions, slot_mapping: [T] int64 (slot −1: the token's keys are not stored)
    block_tables: [S, B] int64; block 0 behind a context and for blocks that were given back
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
    def from_plan(cls, plan: StepPlan, block_size: int, device: torch.device) -> "ForwardBatch":
        scheduled = list(plan)
        lengths = np.array([s.num_tokens for s in scheduled], dtype=np.int64)
        first = np.array([s.sequence.num_computed_tokens for s in scheduled], dtype=np.int64)
        query_start = np.zeros(len(scheduled) + 1, dtype=np.int64)
        np.cumsum(lengths, out=query_start[1:])

        token_ids = np.empty(query_start[-1], dtype=np.int64)
        widest = max(len(s.sequence.block_table) for s in scheduled)
        block_tables = np.zeros((len(scheduled), widest), dtype=np.int64)
        for row, s in enumerate(scheduled):
            begin = s.sequence.num_computed_tokens
            tokens = s.sequence.token_ids[begin : begin + s.num_tokens]
            token_ids[query_start[row] : query_start[row + 1]] = tokens
            block_tables[row, : len(s.sequence.block_table)] = s.sequence.block_table

        rows = np.repeat(np.arange(len(scheduled)), lengths)
        positions = np.arange(query_start[-1]) - query_start[rows] + first[rows]
        blocks = block_tables[rows, positions // block_size]
        assert (blocks >= 0).all(), "a block was given back before its tokens were computed"
        slot_mapping = blocks * block_size + positions % block_size
        np.maximum(block_tables, 0, out=block_tables)
        samples = [
            index
            for row, s in enumerate(scheduled)
            for index in range(query_start[row + 1] - s.num_logits, query_start[row + 1])
        ]

        def tensor(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            token_ids=tensor(token_ids),
            positions=tensor(positions),
            slot_mapping=tensor(slot_mapping),
            block_tables=tensor(block_tables),
            query_start=tensor(query_start),
            context_lens=tensor(first + lengths),
            sample_indices=tensor(np.array(samples, dtype=np.int64)),
            num_decodes=len(plan.decodes),
        )
