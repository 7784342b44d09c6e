"""How much KV memory there is, and how many requests fit into it at once.

The engine plans its memory with the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.planner.roofline import DecoderShape

# Of the memory that is free at start, on a host without a GPU: the rest stays for activations, the
# server and the page cache of the weights' file.
HOST_MEMORY_RATIO = 0.4


def host_kv_bytes(available_bytes: int, full_use_bytes: int) -> int:
    """KV memory on a host: no more than all sequences at their longest can fill."""
    return min(full_use_bytes, int(HOST_MEMORY_RATIO * available_bytes))


def device_kv_bytes(
    total_bytes: int,
    utilization_ratio: float,
    *,
    weight_bytes: int,
    step_peak_bytes: int,
    graph_bytes: int = 0,
    other_bytes: int = 0,
) -> int:
    """What a GPU's other uses leave of `utilization_ratio` of it; negative if they do not fit."""
    allowed = int(utilization_ratio * total_bytes)
    return allowed - other_bytes - weight_bytes - step_peak_bytes - graph_bytes


def step_peak_bytes(
    shape: DecoderShape, number_bytes: int, batched_tokens: int, sequences: int
) -> int:
    """About what a step of so many tokens takes beside weights and KV memory: two residual rows,
    the widest matrix's result with what is made of it, and logits with their softmax in float32."""
    outs = [out for out, _ in shape.layer_matrices().values()]
    row = 2 * shape.hidden_size + max(outs) + shape.intermediate_size
    return batched_tokens * row * number_bytes + 2 * sequences * shape.vocab_size * 4


def pool_blocks(budget_bytes: int, block_bytes: int) -> int:
    return budget_bytes // block_bytes


def blocks_of(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


@dataclass(frozen=True, slots=True)
class Request:
    """Of a workload, all alike. The first `shared_tokens` of the prompt are the same in all."""

    prompt_tokens: int
    output_tokens: int
    shared_tokens: int = 0

    def __post_init__(self) -> None:
        assert self.prompt_tokens >= 1 and self.output_tokens >= 1
        assert 0 <= self.shared_tokens <= self.prompt_tokens

    @property
    def stored_tokens(self) -> int:
        """At its end: the last token is answered and never read."""
        return self.prompt_tokens + self.output_tokens - 1

    def cached_tokens(self, block_tokens: int) -> int:
        """Found by a prefix cache, in whole blocks; at least one token is computed."""
        found = min(self.shared_tokens, self.prompt_tokens - 1)
        return found // block_tokens * block_tokens


def request_blocks(request: Request, block_tokens: int, window: int | None = None) -> int:
    """That one request holds at the most, alone. With a window, what is behind it is given back
    once the prompt is computed."""
    at_end = blocks_of(request.stored_tokens, block_tokens)
    if window is None:
        return at_end
    in_prompt = blocks_of(request.prompt_tokens, block_tokens)
    return min(at_end, max(in_prompt, blocks_of(window, block_tokens) + 1))


def requests_that_fit(
    num_blocks: int,
    block_tokens: int,
    request: Request,
    *,
    share_prefix: bool = True,
    window: int | None = None,
    watermark_ratio: float = 0.01,
) -> int:
    """That run at once, from their beginning to their end, and none is preempted.

    All are admitted while as many blocks stay free as the watermark says; then each grows to its
    end. Blocks of a shared prefix are held once.
    """
    shared = request.cached_tokens(block_tokens) // block_tokens if share_prefix else 0
    at_end = request_blocks(request, block_tokens, window) - shared
    in_prompt = blocks_of(request.prompt_tokens, block_tokens) - shared
    left = num_blocks - shared
    if left < at_end:
        return 0
    watermark = max(1, int(watermark_ratio * num_blocks))
    # The first is admitted whatever the watermark says.
    admitted = max(1, (left - watermark) // in_prompt)
    return min(left // at_end, admitted)


def contiguous_requests_that_fit(
    budget_bytes: int, token_bytes: float, max_context_tokens: int
) -> int:
    """Without paging: each request reserves a whole context, however short it is."""
    return int(budget_bytes // (token_bytes * max_context_tokens))
