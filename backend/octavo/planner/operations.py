"""What each operation of a step must move and compute, where it stands under the roof, and how the
step's time splits.

The counting is `roofline`'s: bytes are of main memory, activations stay in caches, a multiply-add
is two FLOPs. So the operations' bytes sum to `decode_step_bytes`, and their FLOPs to those of
`decode_step_work`. Norms, rotary embedding, activation and embedding have next to none of either:
their time counts, their work is 0 (of a norm, its weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from octavo.planner.roofline import Bound, DecoderShape, Work

Operation = Literal[
    "embed", "norm", "qkv", "store", "attend", "output", "gate_up", "down", "lm_head"
]
OPERATIONS: tuple[Operation, ...] = (
    "embed", "norm", "qkv", "store", "attend", "output", "gate_up", "down", "lm_head",
)  # fmt: skip
MEANINGS: Mapping[Operation, str] = {
    "embed": "a row of the embedding for each token",
    "norm": "sums with the residual stream, and RMSNorm",
    "qkv": "queries, keys and values: one product",
    "store": "rotary embedding, and keys and values into KV memory",
    "attend": "attention on KV memory",
    "output": "attention's output product",
    "gate_up": "the MLP's first product, with its activation",
    "down": "the MLP's second product",
    "lm_head": "logits of the tokens that get a next one",
}


@dataclass(frozen=True, slots=True)
class Network:
    """A decoder as it is stored.

    weight_bytes: of all layers together, by operation; what a step reads once
    kv_layer_bytes: of one token, keys and values, in each layer
    windows: tokens that a token attends to in each layer, itself included; None: all
    """

    shape: DecoderShape
    weight_bytes: Mapping[Operation, float]
    kv_layer_bytes: Sequence[float]
    windows: Sequence[int | None]

    def __post_init__(self) -> None:
        assert len(self.kv_layer_bytes) == len(self.windows) == self.shape.num_layers


@dataclass(frozen=True, slots=True)
class Rows:
    """One sequence's share of a step: a decode has one query token, a chunk of a prompt several.

    context_tokens: in KV memory before them
    samples: tokens whose logits are wanted
    """

    query_tokens: int
    context_tokens: float
    samples: int = 1


def step_operations(network: Network, rows: Iterable[Rows]) -> dict[Operation, Work]:
    """Of one step that computes `rows`."""
    rows = list(rows)
    shape = network.shape
    tokens = sum(each.query_tokens for each in rows)
    samples = sum(each.samples for each in rows)
    sizes: dict[str, float] = {
        name: shape.num_layers * math.prod(matrix)
        for name, matrix in shape.layer_matrices().items()
    }
    sizes["lm_head"] = math.prod(shape.lm_head)
    read = pairs = 0.0
    for kv_bytes, window in zip(network.kv_layer_bytes, network.windows, strict=True):
        read += kv_bytes * sum(_found(each, window) for each in rows)
        pairs += sum(_pairs(each, window) for each in rows)
    works: dict[Operation, Work] = {}
    for name in OPERATIONS:
        weights = network.weight_bytes.get(name, 0)
        if name == "store":
            works[name] = Work(tokens * sum(network.kv_layer_bytes), 0)
        elif name == "attend":
            works[name] = Work(read, 4 * shape.num_heads * shape.head_dim * pairs)
        elif name == "lm_head":
            # A step that samples nothing leaves it out.
            works[name] = Work(weights if samples else 0, 2 * samples * sizes[name])
        else:
            works[name] = Work(weights, 2 * tokens * sizes.get(name, 0))
    return works


def _found(rows: Rows, window: int | None) -> float:
    """Tokens before the step's own that any of them attends to: each is read once."""
    if window is None:
        return rows.context_tokens
    return min(rows.context_tokens, window - 1)


def _pairs(rows: Rows, window: int | None) -> float:
    """Of a query token with one that it attends to."""
    queries, context = rows.query_tokens, rows.context_tokens
    if window is None:
        return queries * context + queries * (queries + 1) / 2
    # Token i, from 1 on, sees context + i tokens; those before `whole` see less than a window.
    whole = min(max(math.floor(window - context), 0), queries)
    return whole * context + whole * (whole + 1) / 2 + (queries - whole) * window


def total(works: Iterable[Work]) -> Work:
    works = list(works)
    return Work(sum(each.bytes for each in works), sum(each.flops for each in works))


def mbu_ratio(work: Work, elapsed_s: float, read_bytes_per_s: float) -> float:
    """Model bandwidth utilization: bytes that must move / time / the measured peak."""
    return work.bytes / elapsed_s / read_bytes_per_s


def mfu_ratio(work: Work, elapsed_s: float, flops_per_s: float) -> float:
    """Model FLOPs utilization: FLOPs that must be done / time / the measured peak."""
    return work.flops / elapsed_s / flops_per_s


@dataclass(frozen=True, slots=True)
class Position:
    """Of an operation under the roof of Williams, Waterman and Patterson, 2009.

    intensity: FLOPs for each byte
    roof_flops_per_s: the most that the machine does at this intensity
    share_ratio: the shortest time that the peaks allow / the measured one; above 1 where data come
        from caches, which read faster than the memory whose peak was measured
    """

    bound: Bound
    floor_s: float
    intensity: float
    roof_flops_per_s: float
    share_ratio: float


def position(
    work: Work, elapsed_s: float, read_bytes_per_s: float, flops_per_s: float
) -> Position | None:
    """None: it has no work that is counted, so no place under the roof."""
    if work.bytes <= 0 and work.flops <= 0:
        return None
    floor_s, bound = work.floor_s(read_bytes_per_s, flops_per_s)
    intensity = work.flops / work.bytes if work.bytes else math.inf
    return Position(
        bound=bound,
        floor_s=floor_s,
        intensity=intensity,
        roof_flops_per_s=min(intensity * read_bytes_per_s, flops_per_s),
        share_ratio=floor_s / elapsed_s if elapsed_s > 0 else math.inf,
    )


GAPS = {
    "bytes": "the time of the step's bytes at the read peak",
    "compute": "what operations that computing bounds take beyond their bytes, at the matrix peak",
    "barriers": "threads that wait for each other at the ends of phases, mean of the threads",
    "kernels": "operations above their floor; below 0 where data come from caches",
    "launch": "the forward pass beside its operations: the call, and waking the threads",
    "sample": "logits to tokens",
    "schedule": "Python: what runs next, tensors of it, booking and counting its tokens",
    "hand out": "Python: tokens to their receivers; sender threads do the rest beside the step",
    "rest": "Python: the inbox, moving blocks, and between the other parts",
    "recording": "what taking these times took; the step without it is what was measured",
}
Gap = Literal[
    "bytes", "compute", "barriers", "kernels", "launch", "sample", "schedule", "hand out", "rest",
    "recording",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Of a step that was recorded, in seconds.

    operations: of the forward pass, by operation; waited: of them, at barriers, mean of the threads
    parts: schedule, sample, hand out
    plain_s: of the same step when nothing was recorded
    """

    step_s: float
    forward_s: float
    operations: Mapping[Operation, float]
    waited: Mapping[Operation, float]
    parts: Mapping[Literal["schedule", "sample", "hand out"], float]
    plain_s: float


def split_step(
    times: StepTimes,
    works: Mapping[Operation, Work],
    read_bytes_per_s: float,
    flops_per_s: Mapping[Operation, float],
) -> dict[Gap, float]:
    """Seconds of each gap; they sum to `plain_s`. flops_per_s: the peak of what each multiplies."""
    busy_s = sum(times.operations.values())
    bytes_s = total(works.values()).bytes / read_bytes_per_s
    floor_s = sum(
        work.floor_s(read_bytes_per_s, flops_per_s[name])[0] for name, work in works.items()
    )
    waited_s = sum(times.waited.values())
    gaps: dict[Gap, float] = {
        "bytes": bytes_s,
        "compute": max(floor_s - bytes_s, 0.0),
        "barriers": waited_s,
        "kernels": busy_s - waited_s - floor_s,
        "launch": times.forward_s - busy_s,
        "sample": times.parts["sample"],
        "schedule": times.parts["schedule"],
        "hand out": times.parts["hand out"],
    }
    gaps["rest"] = times.step_s - times.forward_s - sum(times.parts.values())
    gaps["recording"] = times.plain_s - times.step_s
    return gaps
