"""How long steps take, and so TTFT, TPOT and requests per second at a batch.

A step of the engine computes a token of each running sequence and beside them a chunk of a prompt.
Products with the weights and attention take turns, layer by layer. Within each, memory and compute
overlap in part: the time of both together is the root of the sum of their squares, between the
larger (the roofline, where they overlap wholly) and the sum (not at all).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.planner.capacity import Request
from octavo.planner.model import ModelSizes
from octavo.planner.roofline import (
    Peaks,
    Work,
    attention_work,
    decode_step_work,
    mean_decode_context_tokens,
)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of a machine's peaks that the engine reaches, and what a step takes beside them.

    int4_read_ratio: of the bandwidth, where weights have 4 bits and must be unpacked
    """

    read_ratio: float
    int4_read_ratio: float
    kv_read_ratio: float
    decode_compute_ratio: float
    prefill_compute_ratio: float
    step_overhead_s: float


# For machines that nobody has fitted. A GPU's are of the engine on an H200, against the datasheet
# (docs/gpu.md): llama-3.2-1b and llama-3.1-8b alone, in bf16 and int4, and 256 sequences of them.
# A host's are of the CPU results in bench/results, with four fifths of the bandwidth on paper.
ASSUMED = {
    "gpu": Efficiency(0.7, 0.36, 0.6, 0.5, 0.5, 0.00035),
    "cpu": Efficiency(0.8, 0.8, 0.5, 0.65, 0.65, 0.001),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """Peaks of one accelerator or host: reads, and FLOPs in the format that is multiplied."""

    read_bytes_per_s: float
    flops_per_s: float
    efficiency: Efficiency

    @classmethod
    def of(cls, peaks: Peaks, efficiency: Efficiency) -> Speed:
        return cls(peaks.read_bytes_per_s, peaks.flops_per_s, efficiency)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as it is held: bytes of weights that a step reads, and of a token in KV memory; bits
    of a weight of its layers."""

    model: ModelSizes
    step_weight_bytes: int
    kv_token_bytes: float
    weight_bits: int = 16

    def read_ratio(self, efficiency: Efficiency) -> float:
        """Of its weights."""
        return efficiency.int4_read_ratio if self.weight_bits <= 4 else efficiency.read_ratio


def decode_step_s(loaded: Loaded, speed: Speed, sequences: float, context_tokens: float) -> float:
    """Of a step that decodes a token of each sequence, with `context_tokens` before it."""
    own, work = speed.efficiency, decode_work(loaded, sequences, context_tokens)
    products_flops = 2 * sequences * loaded.model.shape.num_weights
    products_s = _together_s(
        loaded.step_weight_bytes / (loaded.read_ratio(own) * speed.read_bytes_per_s),
        products_flops / (own.decode_compute_ratio * speed.flops_per_s),
    )
    attention_s = _together_s(
        (work.bytes - loaded.step_weight_bytes) / (own.kv_read_ratio * speed.read_bytes_per_s),
        (work.flops - products_flops) / (own.decode_compute_ratio * speed.flops_per_s),
    )
    return own.step_overhead_s + products_s + attention_s


def _together_s(reading_s: float, computing_s: float) -> float:
    """Of work whose reads and arithmetic overlap in part: between the longer of both (the
    roofline) and their sum."""
    return math.hypot(reading_s, computing_s)


def decode_mbu_ratio(
    loaded: Loaded, speed: Speed, sequences: float, context_tokens: float
) -> float:
    work = decode_work(loaded, sequences, context_tokens)
    elapsed_s = decode_step_s(loaded, speed, sequences, context_tokens)
    return work.bytes / elapsed_s / speed.read_bytes_per_s


def decode_work(loaded: Loaded, sequences: float, context_tokens: float) -> Work:
    """Of such a step. A shared prefix is held once and read by each of its sequences."""
    return decode_step_work(
        loaded.model.shape,
        weight_bytes=loaded.step_weight_bytes,
        kv_token_bytes=loaded.kv_token_bytes,
        sequences=sequences,
        context_tokens=loaded.model.read_context_tokens(context_tokens),
    )


def prefill_s(
    loaded: Loaded, speed: Speed, prompt_tokens: int, cached_tokens: int, chunk_tokens: int
) -> float:
    """Of the tokens of a prompt that are not cached, beside decodes: what its chunks add to the
    steps that they are part of. Such a step reads the weights anyway."""
    own, total_s, first = speed.efficiency, 0.0, cached_tokens
    while first < prompt_tokens:
        last = min(first + chunk_tokens, prompt_tokens)
        work = prefill_work(loaded, last - first, last)
        reading_s = work.bytes / (own.kv_read_ratio * speed.read_bytes_per_s)
        computing_s = work.flops / (own.prefill_compute_ratio * speed.flops_per_s)
        total_s += _together_s(reading_s, computing_s)
        first = last
    return total_s


def prefill_work(loaded: Loaded, tokens: int, context_tokens: int) -> Work:
    """Of one chunk, without the weights' bytes, its last token at `context_tokens`: layers of each
    token, lm_head of the last."""
    shape = loaded.model.shape
    weights = shape.num_layers * sum(math.prod(m) for m in shape.layer_matrices().values())
    read = round(loaded.model.read_context_tokens(context_tokens))
    attention = attention_work(
        sequences=1, query_tokens=min(tokens, read), context_tokens=read,
        num_heads=shape.num_heads, head_dim=shape.head_dim, kv_token_bytes=0, number_bytes=0,
    )  # fmt: skip
    return Work(
        bytes=loaded.kv_token_bytes * (read + tokens),
        flops=2 * (tokens * weights + math.prod(shape.lm_head))
        + shape.num_layers * attention.flops,
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of an engine that keeps `batch` requests running.

    requests_per_s: that it finishes
    prefill_s, decode_s: of its time that one request takes
    """

    batch: float
    ttft_s: float
    tpot_s: float
    requests_per_s: float
    prefill_s: float
    decode_s: float
    step_s: float
    mbu_ratio: float


def predict(
    loaded: Loaded,
    speed: Speed,
    request: Request,
    batch: float,
    *,
    chunk_tokens: int,
    block_tokens: int,
    share_prefix: bool = True,
) -> Prediction:
    """In the steady state, requests all alike: one that ends makes room for the next.

    A request holds its place for as many steps as its prompt has chunks, and for a step for each
    further token; in those it decodes. Meanwhile each of the others begins once, and its prompt
    makes those steps longer. TTFT is what Little's law leaves: batch = requests_per_s · (TTFT +
    steps · TPOT).
    """
    cached = request.cached_tokens(block_tokens) if share_prefix else 0
    prompt_s = prefill_s(loaded, speed, request.prompt_tokens, cached, chunk_tokens)
    chunks = -(-(request.prompt_tokens - cached) // chunk_tokens)
    steps = request.output_tokens - 1
    context = mean_decode_context_tokens(request.prompt_tokens, max(request.output_tokens, 2))
    others = max(batch - 1, 0)
    decoding = others * steps / (steps + chunks)  # of the others, in the mean
    step_s = decode_step_s(loaded, speed, decoding + 1, context)
    beside_s = decode_step_s(loaded, speed, decoding, context)  # a chunk of its own prompt
    late_s = others * prompt_s / (steps + chunks)
    decode_s = (steps * step_s + chunks * beside_s) / batch
    return Prediction(
        batch=batch,
        ttft_s=prompt_s + chunks * (beside_s + late_s),
        tpot_s=step_s + late_s if steps else 0.0,
        requests_per_s=1 / (prompt_s + decode_s),
        prefill_s=prompt_s,
        decode_s=decode_s,
        step_s=step_s,
        mbu_ratio=decode_mbu_ratio(loaded, speed, decoding + 1, context),
    )
