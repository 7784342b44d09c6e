"""What a step must move and compute at least, and the speed that this bounds.

The model of Williams, Waterman and Patterson, 2009 ("Roofline"): a piece of work takes at least the
larger of bytes / bandwidth and FLOPs / peak. Bytes are of main memory: weights are read once a
step, keys and values of each token once, those of new tokens are written; activations are taken to
stay in caches. A multiplication with its addition counts as two FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Bound = Literal["memory", "compute"]


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of a machine, at the time it was measured: shared ones drift. FLOPs are of one format."""

    read_bytes_per_s: float
    flops_per_s: float

    def better(self, other: Peaks) -> Peaks:
        """The higher one of each."""
        return Peaks(
            max(self.read_bytes_per_s, other.read_bytes_per_s),
            max(self.flops_per_s, other.flops_per_s),
        )


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder-only network."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    def layer_matrices(self) -> Mapping[str, tuple[int, int]]:
        """[out, in] of one layer's matrices, stacked where they share their input."""
        heads = self.num_heads * self.head_dim
        kv_heads = self.num_kv_heads * self.head_dim
        return {
            "qkv": (heads + 2 * kv_heads, self.hidden_size),
            "output": (self.hidden_size, heads),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }

    @property
    def lm_head(self) -> tuple[int, int]:
        return (self.vocab_size, self.hidden_size)

    @property
    def num_weights(self) -> int:
        """Of all matrices that a token which is decoded meets."""
        layer = sum(math.prod(matrix) for matrix in self.layer_matrices().values())
        return self.num_layers * layer + math.prod(self.lm_head)


def mean_decode_context_tokens(prompt_tokens: int, output_tokens: int) -> float:
    """Tokens before the one that a decode step computes, mean over a sequence's decode steps.

    Prefill gives the first output token. The step for output token i, from 2 on, computes token
    i − 1 and finds the prompt and i − 2 tokens before it.
    """
    assert output_tokens >= 2, output_tokens
    return prompt_tokens + (output_tokens - 2) / 2


def decode_step_bytes(
    *,
    weight_bytes: float,
    kv_token_bytes: float,
    sequences: float,
    context_tokens: float,
    shared_tokens: float = 0,
) -> float:
    """Of one step that decodes a token of each sequence: weights once, KV read, KV written.

    context_tokens: before the new token, mean of the sequences, of which all have the first
        `shared_tokens` in common; those are needed once
    """
    assert 0 <= shared_tokens <= context_tokens, (shared_tokens, context_tokens)
    read = shared_tokens + sequences * (context_tokens - shared_tokens)
    return weight_bytes + kv_token_bytes * (read + sequences)


@dataclass(frozen=True, slots=True)
class Work:
    """What one call must move and compute."""

    bytes: float
    flops: float

    def floor_s(self, read_bytes_per_s: float, flops_per_s: float) -> tuple[float, Bound]:
        """The shortest time that the peaks allow, and which of them sets it."""
        memory_s, compute_s = self.bytes / read_bytes_per_s, self.flops / flops_per_s
        return (memory_s, "memory") if memory_s >= compute_s else (compute_s, "compute")

    def peak_ratios(
        self, elapsed_s: float, read_bytes_per_s: float, flops_per_s: float
    ) -> tuple[float, float]:
        """MBU and MFU of work that took `elapsed_s`."""
        return self.bytes / elapsed_s / read_bytes_per_s, self.flops / elapsed_s / flops_per_s

    @property
    def flops_per_byte(self) -> float:
        return self.flops / self.bytes


def linear_work(rows: int, out: int, width: int, weight_bytes: float, number_bytes: int) -> Work:
    """x [rows, width] · weight [out, width], x and result in numbers of `number_bytes`."""
    return Work(
        bytes=weight_bytes + rows * (width + out) * number_bytes, flops=2 * rows * out * width
    )


def attention_work(
    *,
    sequences: int,
    query_tokens: int,
    context_tokens: int,
    num_heads: int,
    head_dim: int,
    kv_token_bytes: int,
    number_bytes: int,
) -> Work:
    """Causal attention of each sequence's last `query_tokens` to its context, in one layer.

    Two products of head_dim for each query head and each pair of a token with one that it sees.
    """
    unseen = query_tokens * (query_tokens - 1) // 2
    pairs = query_tokens * context_tokens - unseen
    queries_and_result = 2 * query_tokens * num_heads * head_dim * number_bytes
    return Work(
        bytes=sequences * (context_tokens * kv_token_bytes + queries_and_result),
        flops=sequences * 4 * num_heads * head_dim * pairs,
    )


def decode_step_work(
    shape: DecoderShape,
    *,
    weight_bytes: float,
    kv_token_bytes: float,
    sequences: float,
    context_tokens: float,
    shared_tokens: float = 0,
) -> Work:
    """Of one step that decodes a token of each sequence; for the arguments see
    `decode_step_bytes`. Norms, rotary embedding and activations are left out: below one in a
    hundred FLOPs."""
    attended = 2 * shape.num_layers * shape.num_heads * shape.head_dim * (context_tokens + 1)
    return Work(
        bytes=decode_step_bytes(
            weight_bytes=weight_bytes,
            kv_token_bytes=kv_token_bytes,
            sequences=sequences,
            context_tokens=context_tokens,
            shared_tokens=shared_tokens,
        ),
        flops=2 * sequences * (shape.num_weights + attended),
    )
