"""Speed of the kernels one by one: what is asked for, and what a result's line holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError

Line = dict[str, Any]

OPS = ("linear", "attention_decode", "attention_prefill", "add_rms_norm", "silu_mul", "sample")
DEFINITIONS = {
    "time_us": "one call from Python, its overhead included: the median over calls",
    "gbs, gflops": "what the call must move, and compute, per second",
    "share_ratio": "the shortest time that the peaks allow / the time",
    "bound": "the peak that sets the shortest time: read bandwidth or products of matrices",
    "rotated_mib": "calls take turns through that much of weights, KV memory or inputs. Less than "
    "the last level cache: the row is of a cache and can exceed its share",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As asked for. model: a checkpoint folder; None is the shape of TinyLlama 1.1B."""

    model: str | None = None
    ops: tuple[str, ...] = OPS
    dtype: str = "bfloat16"
    num_threads: int | None = None
    kernels: str = "auto"  # as EngineConfig's
    kernel_cache: str = ""
    rotated_bytes: int = 2**28
    min_s: float = 0.1  # of one row


def check_ops(ops: tuple[str, ...]) -> None:
    """Raises ConfigError."""
    for op in ops:
        if op not in OPS:
            raise ConfigError(f"--ops = {op}: should be of {', '.join(OPS)}")
