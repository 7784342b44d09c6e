"""Runs the steps that the scheduler plans: owns the model and the KV memory."""

import ctypes
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.device_load import choose_device, load_on_gpu
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.forward_batch import BatchBuilder
from octavo.execution.kv_cache import KVCache
from octavo.execution.kv_namespace import kv_namespace
from octavo.execution.memory_plan import MemoryPlan, plan_memory
from octavo.execution.sampler import SampledTokens, Sampler
from octavo.kernels import cpu
from octavo.kernels.cpu import Library
from octavo.models.decoder import Decoder
from octavo.models.model_config import read_model_config
from octavo.models.weights import checkpoint_digest
from octavo.quantization.weights import weight_format
from octavo.scheduling.sequence import Sequence, StepPlan
from octavo.spans import span

log = logging.getLogger(__name__)


class PendingStep(Protocol):
    """A step that was launched."""

    def result(self) -> SampledTokens:
        """Waits for it."""
        ...


@dataclass(frozen=True, slots=True)
class _Done:
    """A step of a device that has no queue: it was computed as it was launched."""

    sampled: SampledTokens

    def result(self) -> SampledTokens:
        return self.sampled


class ModelRunner:
    """`run` computes one step. `max_model_len` and the pool's size are settled at load."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError if the checkpoint or a setting cannot be served."""
        self.device = choose_device(config.device)
        self.num_threads = config.num_threads or len(os.sched_getaffinity(0))
        self._cpus = config.thread_cpus
        _check_cpus(self._cpus, self.num_threads)
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
        if config.lm_head_format not in ("auto", name):
            raise ConfigError(
                f"lm_head_format = {config.lm_head_format!r}: the model computes in {name}; set "
                f"dtype = {config.lm_head_format!r}, or lm_head_format = 'auto' (8 bits)"
            )
        self.weight_format = weight_format(
            config.weight_format, config.weight_group_size, name, self.model_config.stored_format
        )
        self.library: Library | None = None
        self._on_gpu: DeviceRunner | None = None
        if self.device.type == "cuda":
            loaded = load_on_gpu(
                config, self.model_config, self.folder, self.dtype, self.weight_format, self.device
            )
            plan, self.model, self.kv_cache = loaded.plan, loaded.model, loaded.kv_cache
            self._on_gpu = loaded.runner
        else:
            plan = plan_memory(config, self.model_config, name)
            self.library = self._load_library(config)
            self.model = Decoder(
                self.model_config, self.folder, self.dtype, plan.max_model_len,
                self.weight_format, config.lm_head_format, self.library,
            )  # fmt: skip
            _return_free_memory()
            self.kv_cache = KVCache.allocate(plan.layout, plan.num_blocks, self.device)
        self.max_model_len = plan.max_model_len
        self._batches = BatchBuilder(self.block_size)
        self._sampler = Sampler(self.library)
        self._latest: dict[Sequence, int] = {}  # the tokens of the last launch
        self.runs_ahead = self._on_gpu is not None if config.run_ahead is None else config.run_ahead
        self._log_what_was_loaded(config, plan)

    def _log_what_was_loaded(self, config: EngineConfig, plan: MemoryPlan) -> None:
        where = f"{self.num_threads} threads" if self._on_gpu is None else str(self.device)
        log.info(
            "loaded %s: %s weights %.1f MB, %s; context %d tokens",
            self.folder, self.weight_format, self.model.num_bytes / 1e6, where, self.max_model_len,
        )  # fmt: skip
        if self.weight_format.is_quantized:
            stored = self.model_config.stored_format
            log.info(
                "weights %s %s, %.4g bits per weight, lm_head %s",
                f"of the checkpoint ({stored}) in" if stored else "rounded to", self.weight_format,
                self.weight_format.bits_per_weight, self.model.lm_head.format,
            )  # fmt: skip
        log.info(
            "KV memory %.1f MB = %d blocks of %s",
            self.kv_cache.num_bytes / 1e6, plan.num_blocks, plan.layout,
        )  # fmt: skip

    def _load_library(self, config: EngineConfig) -> Library | None:
        """The native kernels, or None for the reference ones: chosen, or because there is no
        other way, which is said. Raises ConfigError if the processor lacks the chosen ones."""
        if config.kernels == "reference":
            return None
        if self.dtype is torch.float16:
            log.warning(
                "dtype = 'float16': the CPU kernels compute in bfloat16 or float32; this runs on "
                "the reference operators, many times slower"
            )
            return None
        try:
            library = cpu.load(
                config.kernel_cache, config.kernels, self.num_threads, config.thread_cpus
            )
        except cpu.BuildError as exc:
            log.warning(
                "THE CPU KERNELS CANNOT BE BUILT OR LOADED, so this runs on the reference "
                "operators, many times slower: %s", exc,
            )  # fmt: skip
            return None
        except ValueError as exc:
            raise ConfigError(f"kernels = {config.kernels!r}: {exc}") from None
        log.info("CPU kernels: %s, %d threads", library.isa, self.num_threads)
        return library

    @property
    def kernels(self) -> str:
        """Which ones compute: an instruction set's, "gpu", or "reference"."""
        if self._on_gpu is not None:
            return "gpu"
        return "reference" if self.library is None else self.library.isa

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.kv_cache.block_size

    @cached_property
    def checkpoint_digest(self) -> bytes:
        """Of the weights' files. Reads the whole checkpoint at first use."""
        return checkpoint_digest(self.folder, self.num_threads)

    @cached_property
    def kv_namespace(self) -> bytes:
        """16 bytes: what the bytes of a block mean. Reads the whole checkpoint at first use."""
        return kv_namespace(
            self.checkpoint_digest,
            self.model_config,
            str(self.dtype),
            self.weight_format,
            self.kv_cache.layout,
            self.max_model_len,
        )

    def bind_to_thread(self) -> None:
        """To be called by the thread that will `run`: OpenMP's size and CUDA's device are a
        thread's own."""
        torch.set_num_threads(self.num_threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self._cpus:
            os.sched_setaffinity(0, {self._cpus[0]})

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> SampledTokens:
        """Computes the planned tokens and samples where a sequence needs its next one. Raises
        StepMemoryError."""
        if self._on_gpu is not None:
            return self._on_gpu.launch(plan).result()
        with span("batch"):
            batch = self._batches.build(plan)
        with span("forward"):
            logits = self.model.forward(batch, self.kv_cache)
        with span("sample"):
            return self._sampler.sample_plan(plan, logits).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Begins a step; those that were launched before it go first. Decodes may await the token
        that the last one samples for them. Raises StepMemoryError."""
        if self._on_gpu is not None:
            return self._on_gpu.launch(plan)
        with span("batch"):
            batch = self._batches.build(plan)
            for row, sequence in enumerate(plan.decodes):
                if sequence.awaits_token:
                    batch.token_ids[row] = self._latest[sequence]
        takers = plan.takers
        with span("forward"):
            logits = self.model.forward(batch, self.kv_cache)
        with span("sample"):
            sampled = self._sampler.sample_plan(plan, logits).result()
        self._latest = dict(zip(takers, sampled.token_ids, strict=True))
        return _Done(sampled)


def _check_cpus(cpus: tuple[int, ...], num_threads: int) -> None:
    """Raises ConfigError unless there is a core of this process for each thread."""
    allowed = os.sched_getaffinity(0)
    if cpus and len(cpus) != num_threads:
        raise ConfigError(f"thread_cpus = {list(cpus)}: num_threads is {num_threads}; one for each")
    for each in cpus:
        if each not in allowed:
            raise ConfigError(f"thread_cpus: core {each}; this process may use {sorted(allowed)}")


def _return_free_memory() -> None:
    """To the system: glibc keeps what the load has freed, some 100 MB after quantizing."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def supports_fp8(device: torch.device) -> bool:
    """Whether `device` converts 8 bit floats itself: NVIDIA's Ada, Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _checkpoint_folder(model: Path) -> Path:
    if not model.is_dir():
        raise ConfigError(f"model = {str(model)!r}: no such folder")
    return model.resolve()
