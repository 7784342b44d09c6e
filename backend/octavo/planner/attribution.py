"""Whose a step's time is, and what a cached prefix is worth.

A step reads the weights once for all its rows, and for each row its own keys and values; each row
has FLOPs of its own. A row's share of the step's time is

    w_r = s_byte × (weight_bytes / rows + kv_token_bytes × (context_r + queries_r))
        + s_flop × (token_flops × queries_r + pair_flops × pairs_r)

over the sum of all rows' w: so the shares sum to the time, whatever the rates are. `s_byte` and
`s_flop` are what a byte and a FLOP take here; they are learned from the steps themselves, so that
a step of decodes goes by bytes and a step of prompts by FLOPs as far as this machine does. Bytes
and FLOPs are those of `roofline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.planner.roofline import DecoderShape

# FLOPs in the time of a byte, until steps have told: between CPUs with matrix units (some 20 to
# 80) and GPUs (150 to 300, by their datasheets).
_PRIOR_FLOPS_PER_BYTE = 100.0
# How far one step moves the rates, and the largest error that it may show: a step that was held
# up by a neighbour says nothing of bytes.
_LEARNING_RATE = 0.2
_LARGEST_ERROR_RATIO = 1.0


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What a step must move and compute, in numbers of one model."""

    weight_bytes: float  # read once a step
    kv_token_bytes: float  # of a token, all layers
    token_flops: float  # of a token's way through the matrices
    pair_flops: float  # of attention, for a token and one that it sees
    window: int | None = None  # tokens that attention reaches back to, where all layers have one

    @classmethod
    def of(
        cls,
        shape: DecoderShape,
        *,
        weight_bytes: float,
        kv_token_bytes: float,
        window: int | None = None,
    ) -> ModelWork:
        return cls(
            weight_bytes=weight_bytes,
            kv_token_bytes=kv_token_bytes,
            token_flops=2 * shape.num_weights,
            pair_flops=4 * shape.num_layers * shape.num_heads * shape.head_dim,
            window=window,
        )


@dataclass(slots=True)
class StepWeights:
    """Of one step. A decode's weight is linear in its context, base + slope × context, so that
    several steps of the same decodes can be shared out at once."""

    base: float
    slope: float
    chunks: list[float]
    total: float  # of all rows
    bytes: float
    flops: float
    memory_share: float  # of the total, what bytes make up; the rest is FLOPs

    def scale(self, elapsed_s: float) -> float:
        """Seconds for each unit of weight."""
        return elapsed_s / self.total


class Attribution:
    """Weighs the rows of steps, and learns from how long the steps took."""

    def __init__(self, work: ModelWork) -> None:
        self._work = work
        self.s_per_byte = _PRIOR_FLOPS_PER_BYTE
        self.s_per_flop = 1.0
        self._has_learned = False

    def weigh(
        self, num_decodes: int, context_tokens: int, chunks: Sequence[tuple[int, int]]
    ) -> StepWeights:
        """context_tokens: those before the ones that the decodes compute, of all of them together;
        chunks: of prompts, the tokens before it and its own number."""
        work, s_per_byte, s_per_flop = self._work, self.s_per_byte, self.s_per_flop
        kv_bytes, pair_flops = work.kv_token_bytes, work.pair_flops
        slope = s_per_byte * kv_bytes + s_per_flop * pair_flops
        shared = s_per_byte * work.weight_bytes / (num_decodes + len(chunks))
        base = shared + slope + s_per_flop * work.token_flops
        attended = context_tokens + num_decodes
        num_bytes = work.weight_bytes + kv_bytes * attended
        flops = work.token_flops * num_decodes + pair_flops * attended
        weights = []
        for context, queries in chunks:
            context = self.reach(context)
            own_bytes = kv_bytes * (context + queries)
            pairs = queries * context + queries * (queries + 1) // 2
            own_flops = work.token_flops * queries + pair_flops * pairs
            weights.append(shared + s_per_byte * own_bytes + s_per_flop * own_flops)
            num_bytes += own_bytes
            flops += own_flops
        bytes_s = s_per_byte * num_bytes
        total = bytes_s + s_per_flop * flops
        return StepWeights(base, slope, weights, total, num_bytes, flops, bytes_s / total)

    def reach(self, context: int) -> int:
        """What attention reads of a context."""
        window = self._work.window
        return context if window is None else min(context, window)

    def learn(self, step: StepWeights, elapsed_s: float) -> None:
        """Moves both rates towards what explains the step, each as far as it had part in it
        (normalised least mean squares, in relative steps: rates stay positive)."""
        bytes_s, flops_s = step.bytes * self.s_per_byte, step.flops * self.s_per_flop
        expected_s = bytes_s + flops_s
        if not self._has_learned:  # the scale; the ratio is the prior's
            self._has_learned = True
            self.s_per_byte *= elapsed_s / expected_s
            self.s_per_flop *= elapsed_s / expected_s
            return
        error_s = min(elapsed_s - expected_s, _LARGEST_ERROR_RATIO * expected_s)
        move = _LEARNING_RATE * error_s / (bytes_s * bytes_s + flops_s * flops_s)
        self.s_per_byte *= 1 + move * bytes_s
        self.s_per_flop *= 1 + move * flops_s


def held_s(block_seconds: float, block_bytes: int, memory_bytes: int) -> float:
    """What it takes of the machine's time to keep blocks that nobody uses: their share of the
    memory (weights and KV memory together) times how long they were kept. Charging memory with
    the whole price is the careful choice: it makes savings look smaller."""
    return block_seconds * block_bytes / memory_bytes
