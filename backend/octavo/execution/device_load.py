"""Loads a model on a GPU: weights, what the largest step and the graphs take, and KV memory of what
is left."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from octavo import kernels
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.decode_rows import RowParams
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache
from octavo.execution.memory_plan import (
    DeviceMemory,
    MemoryPlan,
    kv_layout,
    longest_context,
    plan_memory,
)
from octavo.kernels.operators import Operators
from octavo.models.decoder import Decoder
from octavo.models.model_config import ModelConfig
from octavo.quantization.kv import KVLayout
from octavo.quantization.weights import WeightFormat

log = logging.getLogger(__name__)

_MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Decoder
    kv_cache: KVCache
    runner: DeviceRunner
    plan: MemoryPlan


def choose_device(setting: str) -> torch.device:
    """Of a setting: "auto" is a GPU if there is one. Raises ConfigError if it is not there."""
    if setting == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(setting)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            found = f"{count} GPUs" if torch.version.cuda else "a torch without CUDA"
            raise ConfigError(f"device = {setting!r}: there is {found}; use 'cpu' or 'auto'")
        device = torch.device("cuda", device.index or 0)
    return device


def load_on_gpu(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path,
    dtype: torch.dtype,
    weights: WeightFormat,
    device: torch.device,
) -> LoadedModel:
    """Raises ConfigError, also if the GPU's memory is too small."""
    from octavo.kernels import gpu  # needs the Triton language, which only GPU hosts have

    if weights.quantized_activations:
        raise ConfigError(
            f"weight_format = {weights.name!r}: activations of 8 bits are the CPU's; a GPU takes "
            "'int8' and 'int4'"
        )
    torch.cuda.set_device(device)
    try:
        gpu.set_cache(config.kernel_cache)
        operators, rows = cast(Operators, gpu), gpu.WARM_UP_ROWS
        return _load(config, model_config, folder, dtype, weights, device, operators, rows)
    except torch.OutOfMemoryError as exc:
        free, total = torch.cuda.mem_get_info(device)
        raise ConfigError(
            f"{device}: out of memory while loading, {free / 2**30:.2f} of {total / 2**30:.2f} GiB "
            f"are free ({str(exc).splitlines()[0]}); choose a smaller weight_format, or lower "
            "gpu_memory_utilization, max_num_seqs or max_num_batched_tokens"
        ) from None


def _load(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path,
    dtype: torch.dtype,
    weights: WeightFormat,
    device: torch.device,
    operators: Operators,
    warm_up_rows: tuple[int, ...],
) -> LoadedModel:
    name = str(dtype).removeprefix("torch.")
    longest, layout = longest_context(config, model_config), kv_layout(config, model_config, name)
    check_gpu_kernels_fit(layout)
    began_s = time.monotonic()
    model = Decoder(
        model_config, folder, dtype, longest, weights, config.lm_head_format, None, operators,
        device,
    )  # fmt: skip
    log.info("%s: weights loaded in %.1f s", device, time.monotonic() - began_s)

    def runner(kv_cache: KVCache, max_model_len: int) -> DeviceRunner:
        return DeviceRunner(
            model, kv_cache, operators,
            max_num_seqs=config.max_num_seqs, max_model_len=max_model_len,
            with_graphs=config.cuda_graphs,
        )  # fmt: skip

    trial = KVCache.allocate(layout, 1, device, operators)

    def batch_of(num_tokens: int) -> ForwardBatch:
        return largest_batch(num_tokens, config.max_num_seqs, longest, layout.block_size).to(device)

    with torch.inference_mode():
        for count in warm_up_rows:  # compiles and tunes what no step shall wait for
            logits = model.forward(batch_of(min(count, config.max_num_batched_tokens)), trial)
        rows = RowParams.empty(len(logits), device)
        uniform = operators.uniform_numbers(rows.seeds, rows.top_k)
        operators.greedy(logits)
        operators.sample(logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, uniform)
        trial.write_blocks([0], trial.read_blocks([0]))
    batch = batch_of(config.max_num_batched_tokens)
    memory = _measure(config, model, trial, runner(trial, longest), batch)
    del trial
    torch.cuda.empty_cache()
    left = memory.left_for_kv(config.gpu_memory_utilization)
    log.info(
        "%s: %.2f GiB, of which %.0f %% may be used: weights %.2f, the largest step %.2f, graphs "
        "%.2f, others %.2f, KV memory up to %.2f GiB",
        torch.cuda.get_device_name(device), memory.total / 2**30,
        100 * config.gpu_memory_utilization, memory.weights / 2**30, memory.step_peak / 2**30,
        memory.graphs / 2**30, memory.taken_elsewhere / 2**30, left / 2**30,
    )  # fmt: skip
    plan = plan_memory(config, model_config, name, left)
    kv_cache = KVCache.allocate(plan.layout, plan.num_blocks, device, operators)
    loaded = LoadedModel(model, kv_cache, runner(kv_cache, plan.max_model_len), plan)
    loaded.runner.capture()
    return loaded


def check_gpu_kernels_fit(layout: KVLayout) -> None:
    """Raises ConfigError for sizes that kernels.gpu.paged_attention is not made for."""
    size, dim = layout.block_size, layout.head_dim
    if size < kernels.MIN_BLOCK_SIZE or size & (size - 1):
        raise ConfigError(
            f"block_size = {size}: the GPU's kernels take powers of two from "
            f"{kernels.MIN_BLOCK_SIZE} on"
        )
    if dim % 8 or dim > _MAX_HEAD_DIM:
        raise ConfigError(
            f"config.json: heads of {dim} numbers; the GPU's kernels take multiples of 8 up to "
            f"{_MAX_HEAD_DIM}; set device = 'cpu'"
        )


def _measure(
    config: EngineConfig,
    model: Decoder,
    trial: KVCache,
    runner: DeviceRunner,
    batch: ForwardBatch,
) -> DeviceMemory:
    """Runs the largest step and captures the largest graph, on a pool of one block."""
    device = trial.storage.device
    free, total = torch.cuda.mem_get_info(device)
    taken_elsewhere = total - free - torch.cuda.memory_reserved(device)
    weights = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        model.forward(batch, trial)  # compiles and tunes
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        logits = model.forward(batch, trial)
        logits.softmax(-1)  # what sampling holds beside them
        torch.cuda.synchronize(device)
    step_peak = torch.cuda.max_memory_allocated(device) - weights
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    graphs = 0
    if config.cuda_graphs:
        runner.capture(largest_only=True)
        graphs = torch.cuda.memory_reserved(device) - before
        runner.forget_graphs()
    return DeviceMemory(total, taken_elsewhere, weights, step_peak, graphs)


def largest_batch(
    num_tokens: int, max_num_seqs: int, max_context: int, block_size: int
) -> ForwardBatch:
    """As many sequences decode as can beside prompts that take the rest of the budget: so there are
    as many tokens, logits and decodes' partial sums as there can be. It stores nothing and reads
    block 0; tables have the columns of the longest context."""
    num_prompts = -(-num_tokens // max_context)
    max_blocks = -(-max_context // block_size)
    num_decodes = max(min(max_num_seqs, num_tokens) - num_prompts, 0)
    rest = num_tokens - num_decodes
    chunks = [rest // num_prompts + (i < rest % num_prompts) for i in range(num_prompts)]
    lengths = torch.tensor([1] * num_decodes + chunks)
    ends = lengths.cumsum(0)
    return ForwardBatch(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64),
        positions=torch.cat([torch.arange(int(length)) for length in lengths]),
        slot_mapping=torch.full((num_tokens,), -1),
        block_tables=torch.zeros(len(lengths), max_blocks, dtype=torch.int64),
        query_start=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        context_lens=lengths,
        sample_indices=ends - 1,
        num_decodes=num_decodes,
        max_query_len=max(chunks),
    )
