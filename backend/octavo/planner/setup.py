"""An engine's settings on an accelerator, and what of a workload fits into its memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.planner import capacity
from octavo.planner.capacity import Request
from octavo.planner.hardware import Accelerator
from octavo.planner.model import (
    BLOCK_TOKENS,
    ModelSizes,
    WeightBytes,
    format_of,
    kv_layout,
    kv_token_bytes,
    weight_bytes,
)
from octavo.quantization.weights import WEIGHT_FORMATS

_DEFAULTS = {name: field.default for name, field in EngineConfig.__dataclass_fields__.items()}
# A batch beyond this would gain nothing: weights are read once a step and are long hidden.
MOST_SEQUENCES = 4096


# What docs/gpu.md has a GPU begin with; the engine's defaults are a CPU's.
GPU_SEQUENCES, GPU_BATCHED_TOKENS = 256, 8192


def usual_sequences(kind: str) -> int:
    return GPU_SEQUENCES if kind == "gpu" else int(_DEFAULTS["max_num_seqs"])


def usual_batched_tokens(kind: str) -> int:
    return GPU_BATCHED_TOKENS if kind == "gpu" else int(_DEFAULTS["max_num_batched_tokens"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Of an engine; names and defaults are EngineConfig's.

    max_num_seqs: None: as many as fit and meet the SLO
    paged: else each request reserves a whole context
    """

    weight_format: str = "auto"
    kv_cache_dtype: str = "auto"
    max_num_seqs: int | None = int(_DEFAULTS["max_num_seqs"])
    max_num_batched_tokens: int = int(_DEFAULTS["max_num_batched_tokens"])
    max_model_len: int | None = None
    block_size: int = BLOCK_TOKENS
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = float(_DEFAULTS["gpu_memory_utilization"])
    watermark_ratio: float = float(_DEFAULTS["watermark_ratio"])
    share_prefix: bool = True
    paged: bool = True


@dataclass(frozen=True, slots=True)
class Fit:
    """Memory of one engine. kv_bytes: for keys and values; negative if the rest does not fit.

    activation_bytes, logits_bytes: of the largest step, where they have a reserve
    requests: that run at once
    """

    weights: WeightBytes
    activation_bytes: int
    logits_bytes: int
    kv_bytes: int
    num_blocks: int
    block_bytes: int
    token_bytes: float
    request_bytes: int
    shared_bytes: int
    requests: int

    @property
    def step_bytes(self) -> int:
        return self.activation_bytes + self.logits_bytes

    def needed_bytes(self, requests: int) -> int:
        """Of weights and of so many requests at their ends."""
        own = requests * (self.request_bytes - self.shared_bytes)
        return self.weights.stored + self.shared_bytes + own


def fit(model: ModelSizes, accelerator: Accelerator, request: Request, setup: Setup) -> Fit:
    """Raises ConfigError for a request that is longer than the contexts."""
    longest = _longest_context(model, request, setup)
    layout = kv_layout(model, setup.kv_cache_dtype, setup.block_size)
    weights = weight_bytes(model, format_of(model, setup.weight_format))
    step = _step_bytes(model, accelerator, setup)
    budget = _kv_bytes(accelerator, weights, sum(step), layout.block_bytes, longest, setup)
    blocks = capacity.pool_blocks(max(budget, 0), layout.block_bytes)
    token_bytes = kv_token_bytes(layout)
    shared = request.cached_tokens(setup.block_size) if setup.share_prefix and setup.paged else 0
    if setup.paged:
        held = capacity.request_blocks(request, setup.block_size, model.common_window)
        request_bytes = held * layout.block_bytes
        requests = capacity.requests_that_fit(
            blocks, setup.block_size, request, share_prefix=setup.share_prefix,
            window=model.common_window, watermark_ratio=setup.watermark_ratio,
        )  # fmt: skip
    else:
        request_bytes = math.ceil(token_bytes * longest)
        requests = capacity.contiguous_requests_that_fit(max(budget, 0), token_bytes, longest)
    return Fit(
        weights=weights,
        activation_bytes=step[0],
        logits_bytes=step[1],
        kv_bytes=budget,
        num_blocks=blocks,
        block_bytes=layout.block_bytes,
        token_bytes=token_bytes,
        request_bytes=request_bytes,
        shared_bytes=round(shared * token_bytes),
        requests=requests,
    )


def _longest_context(model: ModelSizes, request: Request, setup: Setup) -> int:
    most, given = model.max_context_tokens, setup.max_model_len
    total = request.prompt_tokens + request.output_tokens
    if given is not None and given > most:
        raise ConfigError(
            f"--max-model-len = {given}: {model.name} has contexts of up to {most} tokens"
        )
    if total > most:
        raise ConfigError(
            f"prompt and output tokens = {total}: {model.name} has contexts of up to {most} tokens"
        )
    if given is not None and total > given:
        raise ConfigError(
            f"--max-model-len = {given}: the prompt and its output are {total} tokens; "
            f"{model.name} has contexts of up to {most}"
        )
    return most if given is None else given


def _step_bytes(model: ModelSizes, accelerator: Accelerator, setup: Setup) -> tuple[int, int]:
    """Activations and logits of the largest step, which a GPU keeps memory for."""
    if accelerator.kind == "cpu":
        return 0, 0
    number_bytes = WEIGHT_FORMATS[model.dtype].weight_bits // 8
    tokens, sequences = setup.max_num_batched_tokens, setup.max_num_seqs or GPU_SEQUENCES
    return (
        capacity.step_peak_bytes(model.shape, number_bytes, tokens, 0),
        capacity.step_peak_bytes(model.shape, number_bytes, 0, sequences),
    )


def _kv_bytes(
    accelerator: Accelerator,
    weights: WeightBytes,
    step_bytes: int,
    block_bytes: int,
    longest: int,
    setup: Setup,
) -> int:
    sequences = setup.max_num_seqs or MOST_SEQUENCES
    if accelerator.kind == "cpu":
        left = accelerator.memory_bytes - weights.stored
        full_use = sequences * capacity.blocks_of(longest, setup.block_size) * block_bytes
        automatic = left if left < 0 else capacity.host_kv_bytes(left, full_use)
    else:
        left = automatic = capacity.device_kv_bytes(
            accelerator.memory_bytes,
            setup.gpu_memory_utilization,
            weight_bytes=weights.stored,
            step_peak_bytes=step_bytes,
        )
    if setup.kv_cache_bytes is None or left < 0:
        return automatic
    if setup.kv_cache_bytes > left:
        raise ConfigError(
            f"--kv-memory = {setup.kv_cache_bytes / 2**30:g} GiB: {left * 10 // 2**30 / 10} GiB of "
            f"{accelerator.name} are left for keys and values"
        )
    return setup.kv_cache_bytes
