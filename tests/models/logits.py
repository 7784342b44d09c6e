"""The decoder's logits of one prompt, without scheduler and sampler."""

from dataclasses import replace

import torch
from torch import Tensor

from factories import make_sequence
from octavo.engine import Engine
from octavo.execution.forward_batch import ForwardBatch
from octavo.scheduling.sequence import ScheduledSequence, StepPlan


@torch.inference_mode()
def our_logits(engine: Engine, tokens: list[int], chunk: int | None = None) -> Tensor:
    """Of every position, [T, V] float32, computed `chunk` tokens a step, or all in one."""
    chunk = chunk or len(tokens)
    sequence = make_sequence(0, prompt=len(tokens))
    sequence.token_ids = list(tokens)
    block_size = engine.runner.block_size
    sequence.block_table = engine.scheduler.allocator.allocate(-(-len(tokens) // block_size))
    parts = []
    for begin in range(0, len(tokens), chunk):
        plan = StepPlan([], [ScheduledSequence(sequence, min(chunk, len(tokens) - begin))])
        batch = ForwardBatch.from_plan(plan, block_size)
        batch = replace(batch, sample_indices=torch.arange(len(batch.token_ids)))
        parts.append(engine.runner.model.forward(batch, engine.runner.kv_cache).clone())
        sequence.num_computed_tokens += len(batch.token_ids)
    engine.scheduler.allocator.free(sequence.block_table)
    logits = torch.cat(parts)
    assert logits.shape == (len(tokens), engine.vocab_size) and logits.dtype == torch.float32
    return logits
