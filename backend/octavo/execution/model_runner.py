"""Runs the steps that the scheduler plans: owns the model and the KV memory."""

import logging
import os
from functools import cached_property
from pathlib import Path

import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.forward_batch import BatchBuilder
from octavo.execution.kv_cache import KVCache
from octavo.execution.kv_namespace import kv_namespace
from octavo.execution.memory_plan import plan_memory
from octavo.execution.sampler import SampledTokens, Sampler
from octavo.models.decoder import Decoder
from octavo.models.model_config import read_model_config
from octavo.models.weights import checkpoint_digest
from octavo.scheduling.sequence import StepPlan

log = logging.getLogger(__name__)


class ModelRunner:
    """`run` computes one step. `max_model_len` and the pool's size are settled at load."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError if the checkpoint or a setting cannot be served."""
        self.device = torch.device("cpu")
        self.num_threads = config.num_threads or len(os.sched_getaffinity(0))
        self.bind_to_thread()
        if config.kv_cache_dtype == "fp8" and not supports_fp8(self.device):
            raise ConfigError(
                f"kv_cache_dtype = 'fp8': the {self.device.type} has no 8 bit floats (GPUs have "
                "them from compute capability 8.9 on); use 'int8', which takes as many bytes"
            )
        self.folder = _checkpoint_folder(config.model)
        self.model_config = read_model_config(self.folder)
        name = self.model_config.dtype if config.dtype == "auto" else config.dtype
        self.dtype: torch.dtype = getattr(torch, name)
        plan = plan_memory(config, self.model_config, name)
        self.max_model_len = plan.max_model_len
        self.model = Decoder(self.model_config, self.folder, self.dtype, self.max_model_len)
        self.kv_cache = KVCache.allocate(plan.layout, plan.num_blocks, self.device)
        self._batches = BatchBuilder(self.block_size)
        self._sampler = Sampler()
        log.info(
            "loaded %s: %s weights %.1f MB, %d threads; context %d tokens",
            self.folder, name, self.model.num_bytes / 1e6, self.num_threads, self.max_model_len,
        )  # fmt: skip
        log.info(
            "KV memory %.1f MB = %d blocks of %s",
            self.kv_cache.num_bytes / 1e6, plan.num_blocks, plan.layout,
        )  # fmt: skip

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.kv_cache.block_size

    @cached_property
    def kv_namespace(self) -> bytes:
        """16 bytes: what the bytes of a block mean. Reads the whole checkpoint at first use."""
        return kv_namespace(
            checkpoint_digest(self.folder, self.num_threads),
            self.model_config,
            str(self.dtype),
            self.kv_cache.layout,
            self.max_model_len,
        )

    def bind_to_thread(self) -> None:
        """To be called by the thread that will `run`: OpenMP's size is a thread's own."""
        torch.set_num_threads(self.num_threads)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> SampledTokens:
        """Computes the planned tokens and samples where a sequence needs its next one."""
        batch = self._batches.build(plan)
        return self._sampler.sample_plan(plan, self.model.forward(batch, self.kv_cache))


def supports_fp8(device: torch.device) -> bool:
    """Whether `device` converts 8 bit floats itself: NVIDIA's Ada, Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _checkpoint_folder(model: Path) -> Path:
    if not model.is_dir():
        raise ConfigError(f"model = {str(model)!r}: no such folder")
    return model.resolve()
