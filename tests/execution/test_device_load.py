"""What can be said of a GPU where there is none: settings that it cannot serve, and its absence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from factories import make_engine
from octavo.config import make_config
from octavo.errors import ConfigError
from octavo.execution.device_load import check_gpu_kernels_fit, choose_device
from octavo.quantization.kv import KV_FORMATS, KVLayout

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
def test_auto_is_the_cpu_without_a_gpu(toy_folder: Path) -> None:
    engine = make_engine(toy_folder)
    assert engine.runner.device.type == "cpu" and not engine.runner.runs_ahead


@NO_GPU
def test_a_gpu_that_is_not_there_is_refused(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"device = 'cuda:3': there is .*; use 'cpu' or 'auto'"):
        make_engine(toy_folder, device="cuda:3")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("value", ["gpu", "cuda:", "cuda:x", "tpu", ""])
def test_devices_have_names(value: str) -> None:
    with pytest.raises(ConfigError, match=r"device = .*should be 'auto', 'cpu', 'cuda'"):
        make_config(model=Path(), device=value)


@pytest.mark.parametrize("value", [0, -0.5, 1.2, float("nan")])
def test_utilization_is_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match="gpu_memory_utilization"):
        make_config(model=Path(), gpu_memory_utilization=value)


@pytest.mark.parametrize(
    ("size", "dim", "fault"),
    [(8, 64, "block_size = 8"), (48, 64, "block_size = 48"), (16, 20, "heads of 20"),
     (16, 320, "heads of 320"), (16, 64, None), (1024, 256, None)],
)  # fmt: skip
def test_sizes_that_the_gpus_kernels_take(size: int, dim: int, fault: str | None) -> None:
    layout: Any = KVLayout((KV_FORMATS["bfloat16"],), size, 2, dim)
    if fault is None:
        return check_gpu_kernels_fit(layout)
    with pytest.raises(ConfigError, match=fault):
        check_gpu_kernels_fit(layout)
