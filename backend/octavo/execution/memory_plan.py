"""What KV memory a host can give to a model: format, block, number of blocks, longest context."""

import logging
from dataclasses import dataclass

import psutil

from octavo import kernels
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.models.model_config import ModelConfig
from octavo.planner import capacity
from octavo.planner.model import BLOCK_TOKENS
from octavo.quantization.kv import KV_FORMATS, KVLayout, layer_formats

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A context never exceeds the pool, so that every accepted sequence can run alone."""

    layout: KVLayout
    num_blocks: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Of a GPU, in bytes, as measured once the weights were there.

    total: of the device
    taken_elsewhere: by other processes and by the driver
    weights: of the model, with its tables
    step_peak: what the largest step takes beside that
    graphs: of the captured graphs
    """

    total: int
    taken_elsewhere: int
    weights: int
    step_peak: int
    graphs: int

    def left_for_kv(self, utilization: float) -> int:
        """What `utilization` of the device leaves. Raises ConfigError if that is nothing."""
        left = capacity.device_kv_bytes(
            self.total, utilization, weight_bytes=self.weights, step_peak_bytes=self.step_peak,
            graph_bytes=self.graphs, other_bytes=self.taken_elsewhere,
        )  # fmt: skip
        if left <= 0:
            allowed = _gib(int(utilization * self.total))
            raise ConfigError(
                f"gpu_memory_utilization = {utilization:g} allows {allowed} of "
                f"{_gib(self.total)}; the weights take {_gib(self.weights)}, the largest step "
                f"{_gib(self.step_peak)}, graphs {_gib(self.graphs)}, others on this GPU "
                f"{_gib(self.taken_elsewhere)}, which leaves no KV memory; raise it, or lower "
                "max_num_batched_tokens or max_num_seqs, or choose a smaller weight_format"
            )
        return left


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def longest_context(config: EngineConfig, model: ModelConfig) -> int:
    """That is asked for. Raises ConfigError if the model has no positions for it."""
    wanted = config.max_model_len or model.max_position
    if wanted > model.max_position:
        raise ConfigError(
            f"max_model_len = {wanted}: the model's max_position_embeddings is {model.max_position}"
        )
    return wanted


def kv_layout(config: EngineConfig, model: ModelConfig, compute_dtype: str) -> KVLayout:
    """Raises ConfigError."""
    return KVLayout(
        formats=layer_formats(
            config.kv_cache_dtype, config.kv_cache_skip_layers, model.num_layers, compute_dtype
        ),
        block_size=_block_size(config, model, compute_dtype, longest_context(config, model)),
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
    )


def plan_memory(
    config: EngineConfig, model: ModelConfig, compute_dtype: str, left_for_kv: int | None = None
) -> MemoryPlan:
    """left_for_kv: bytes of a GPU that are KV memory's; without, it is a share of the host's.

    Raises ConfigError naming setting, value and limit.
    """
    wanted, layout = longest_context(config, model), kv_layout(config, model, compute_dtype)
    block_size, block_bytes = layout.block_size, layout.block_bytes
    full_use = config.max_num_seqs * capacity.blocks_of(wanted, block_size) * block_bytes
    if left_for_kv is None:
        available = psutil.virtual_memory().available
        budget = config.kv_cache_bytes or capacity.host_kv_bytes(available, full_use)
    else:
        available = left_for_kv
        budget = config.kv_cache_bytes or available
    if budget > available:
        raise ConfigError(f"kv_cache_bytes = {budget}: {available} bytes of memory are available")
    num_blocks = capacity.pool_blocks(budget, block_bytes)
    if num_blocks < 1:
        raise ConfigError(
            f"kv_cache_bytes = {budget}: one block of {block_size} tokens takes {block_bytes} bytes"
        )
    fits = num_blocks * block_size
    if fits < wanted:
        if config.max_model_len is not None:
            raise ConfigError(
                f"max_model_len = {wanted}: {budget} bytes of KV memory hold {fits} tokens; "
                "raise kv_cache_bytes or lower max_model_len"
            )
        log.warning("context cut from %d to %d tokens: KV memory holds no more", wanted, fits)
    return MemoryPlan(layout, num_blocks, min(wanted, fits))


def _block_size(config: EngineConfig, model: ModelConfig, compute_dtype: str, longest: int) -> int:
    """Tokens of a block. From bytes: the largest power of two that they hold in a layer of
    kv_cache_dtype, and that a context can fill, but no less than what the kernels are made for."""
    least = kernels.MIN_BLOCK_SIZE
    if config.block_bytes is None:
        size = config.block_size or BLOCK_TOKENS
        if size < least:
            log.warning("block_size = %d: kernels are made for %d tokens or more", size, least)
        return size
    own = KV_FORMATS[compute_dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype]

    def layer_bytes(tokens: int) -> int:
        return own.block_bytes(tokens, model.num_kv_heads, model.head_dim)

    size = least
    while 2 * size <= longest and layer_bytes(2 * size) <= config.block_bytes:
        size *= 2
    if layer_bytes(size) > config.block_bytes:
        log.warning(
            "block_bytes = %d: a block has the kernels' least, %d tokens, which take %d bytes of "
            "a layer", config.block_bytes, size, layer_bytes(size),
        )  # fmt: skip
    return size
