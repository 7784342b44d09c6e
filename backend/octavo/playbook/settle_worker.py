"""Settles what all stages have in common: `python -m octavo.playbook.settle_worker`.

Given Options, it tells `settled`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from octavo.config import make_config
from octavo.errors import ConfigError
from octavo.execution.device_load import choose_device
from octavo.execution.memory_plan import kv_layout
from octavo.models.architecture import ModelConfig
from octavo.models.model_config import read_model_config
from octavo.models.sizes import decoder_shape, model_sizes
from octavo.planner import model as planner_model
from octavo.playbook.options import RESERVED_CONTEXTS, Options, Settled
from octavo.playbook.workload import WORKLOADS
from octavo.quantization.weights import GROUP_SIZES
from octavo.worker import serve

PAGE_BYTES = 16_384  # the article's
_PREFERRED_GROUPS = (64, 128, 32)


def settle(options: Options) -> Settled:
    """Raises ConfigError naming the option, its value and the limit."""
    options.check()
    folder = Path(options.model)
    model = read_model_config(folder)
    if model.stored_format is not None:
        raise ConfigError(
            f"MODEL = {folder}: its weights are quantized already ({model.stored_format}); name "
            "the checkpoint that they were made from"
        )
    device = choose_device(make_config(model=options.model, device=options.device).device)
    context = _context(options, model, device.type)
    dtype = model.dtype if options.dtype == "auto" else options.dtype
    settings = {"model": options.model, "dtype": dtype, "max_model_len": context}
    layout = kv_layout(make_config(**settings), model, dtype)
    token_bytes = layout.block_bytes // layout.block_size
    memory = options.kv_memory_bytes or RESERVED_CONTEXTS * context * token_bytes
    if memory < context * token_bytes:
        raise ConfigError(
            f"--kv-memory = {memory} bytes: at least {context * token_bytes}, which one context of "
            f"{context} tokens takes"
        )
    free = psutil.virtual_memory().available
    if device.type == "cpu" and memory > free:
        raise ConfigError(f"--kv-memory = {memory} bytes: {free} bytes of memory are free")
    sizes = model_sizes(model, folder.name, dtype)
    pages = kv_layout(make_config(**settings, block_bytes=PAGE_BYTES), model, dtype)
    layer_token_bytes = token_bytes // model.num_layers
    return Settled(
        model=options.model,
        digest=_digest(folder),
        dtype=dtype,
        device=str(device),
        num_threads=options.num_threads or len(os.sched_getaffinity(0)),
        workload=options.workload,
        seed=options.seed,
        vocab_size=model.vocab_size,
        most_users=options.loads[-1],
        context_tokens=context,
        kv_memory_bytes=memory,
        kv_token_bytes=token_bytes,
        kv_layer_token_bytes=layer_token_bytes,
        num_layers=model.num_layers,
        weight_bytes=planner_model.weight_bytes(sizes, planner_model.format_of(sizes)).stored,
        page_tokens=PAGE_BYTES // layer_token_bytes,
        engine_page_tokens=pages.block_size,
        group_size=_group_size(model),
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
    )


def _context(options: Options, model: ModelConfig, device: str) -> int:
    """That contiguous memory reserves. A block is as long, and the GPU's kernels take powers of
    two. Raises ConfigError."""
    workload = WORKLOADS[options.workload]
    limits = (workload.longest_tokens, model.max_position, options.longest_request)
    context = options.context_tokens or min(limit for limit in limits if limit is not None)
    if not 2 <= context <= model.max_position:
        raise ConfigError(
            f"--context = {context}: should be 2 to the model's {model.max_position} tokens"
        )
    if device != "cpu" and context & (context - 1):
        if options.context_tokens is not None:
            raise ConfigError(f"--context = {context}: on a GPU it should be a power of two")
        context = 1 << (context.bit_length() - 1)
    workload.fitted(context)
    return context


def _group_size(model: ModelConfig) -> int | None:
    """Of int4 weights: the first one that rows are whole groups of; None if no one is."""
    assert set(_PREFERRED_GROUPS) == set(GROUP_SIZES)
    widths = {width for _, width in decoder_shape(model).layer_matrices().values()}
    fitting = (g for g in _PREFERRED_GROUPS if all(width % g == 0 for width in widths))
    return next(fitting, None)


def _digest(folder: Path) -> str:
    """Reading every byte of a large checkpoint would take longer than a stage."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        about = file.stat()
        digest.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _events(options: dict[str, Any]) -> Iterator[dict[str, object]]:
    yield {"settled": asdict(settle(Options(**options)))}


if __name__ == "__main__":
    serve(_events)
