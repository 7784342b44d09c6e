"""Runs the steps that the scheduler plans: owns the model and the KV memory."""

import logging
import os
from pathlib import Path

import psutil
import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache
from octavo.execution.sampler import SampledTokens, sample_plan
from octavo.models.decoder import Decoder
from octavo.models.model_config import ModelConfig, read_model_config
from octavo.scheduling.sequence import StepPlan

log = logging.getLogger(__name__)

# Of the memory that is free at start, on a host without a GPU: the rest stays for
# activations, the server and the page cache of the weights' file.
_AUTO_MEMORY_RATIO = 0.4


class ModelRunner:
    """`run` computes one step. `max_model_len` and the pool's size are settled at load."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError if the checkpoint or a setting cannot be served."""
        self.device = torch.device("cpu")
        self.num_threads = config.num_threads or len(os.sched_getaffinity(0))
        self.bind_to_thread()
        folder = _checkpoint_folder(config.model)
        self.model_config = read_model_config(folder)
        name = self.model_config.dtype if config.dtype == "auto" else config.dtype
        self.dtype: torch.dtype = getattr(torch, name)
        num_blocks, self.max_model_len = _plan_memory(config, self.model_config, self.dtype)
        self.model = Decoder(self.model_config, folder, self.dtype, self.max_model_len)
        self.kv_cache = KVCache.allocate(
            num_layers=self.model_config.num_layers,
            num_blocks=num_blocks,
            block_size=config.block_size,
            num_kv_heads=self.model_config.num_kv_heads,
            head_dim=self.model_config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        log.info(
            "loaded %s: %s weights %.1f MB, %d threads; KV memory %.1f MB = %d blocks of %d "
            "tokens; context %d tokens",
            folder, name, self.model.num_bytes / 1e6, self.num_threads,
            self.kv_cache.num_bytes / 1e6, num_blocks, config.block_size, self.max_model_len,
        )  # fmt: skip

    def bind_to_thread(self) -> None:
        """To be called by the thread that will `run`: OpenMP's size is a thread's own."""
        torch.set_num_threads(self.num_threads)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> SampledTokens:
        """Computes the planned tokens and samples where a sequence needs its next one."""
        self.kv_cache.copy_blocks(plan.block_copies)
        batch = ForwardBatch.from_plan(plan, self.kv_cache.block_size, self.device)
        return sample_plan(plan, self.model.forward(batch, self.kv_cache))


def _checkpoint_folder(model: Path) -> Path:
    if not model.is_dir():
        raise ConfigError(f"model = {str(model)!r}: no such folder")
    return model.resolve()


def _plan_memory(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """(number of blocks, longest context). A context never exceeds the pool, so that every
    accepted sequence can run alone."""
    wanted = config.max_model_len or model.max_position
    if wanted > model.max_position:
        raise ConfigError(
            f"max_model_len = {wanted}: the model's max_position_embeddings is {model.max_position}"
        )
    block_bytes = config.block_size * model.kv_values_per_token * dtype.itemsize
    budget = config.kv_cache_bytes
    available = psutil.virtual_memory().available
    if budget is None:
        full_use = config.max_num_seqs * -(-wanted // config.block_size) * block_bytes
        budget = min(full_use, int(_AUTO_MEMORY_RATIO * available))
    if budget > available:
        raise ConfigError(f"kv_cache_bytes = {budget}: {available} bytes of memory are available")
    num_blocks = budget // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"kv_cache_bytes = {budget}: one block of {config.block_size} tokens takes "
            f"{block_bytes} bytes"
        )
    fits = num_blocks * config.block_size
    if fits < wanted:
        if config.max_model_len is not None:
            raise ConfigError(
                f"max_model_len = {wanted}: {budget} bytes of KV memory hold {fits} tokens; "
                "raise kv_cache_bytes or lower max_model_len"
            )
        log.warning("context cut from %d to %d tokens: KV memory holds no more", wanted, fits)
    return num_blocks, min(wanted, fits)
