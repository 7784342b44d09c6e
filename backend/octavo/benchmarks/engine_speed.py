"""Speed of the engine under workloads by name: what is asked for, what a result's line holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.benchmarks import workloads

# One object a workload: the names are JSON's.
Line = dict[str, Any]

DEFINITIONS = {
    **workloads.DEFINITIONS,
    "bytes_per_step": "what a decode step of all requests must move: weights once, keys and values "
    "of the mean context read (a shared prefix once), those of the new tokens written",
    "read_gbs": "read bandwidth by streaming through 1 GiB with the engine's kernels and as many "
    "threads, before and after the workload's runs: the better one",
    "flops_per_step": "what it must compute: two for each weight, lm_head included, and token, and "
    "for each number of the keys and values that a query head meets",
    "matrix_gflops": "the most that the same kernels' multiply instructions do for this format in "
    "registers, before and after: the better one",
    "bound": "which takes longer: bytes_per_step / read_gbs or flops_per_step / matrix_gflops",
    "roofline_tps": "requests / that longer time",
    "roofline_ratio": "decode_tps / roofline_tps",
    "forward_us": "median over steps that only decode of the time in the model",
    "host_us": "median over the same steps of the rest of the step: schedule, sample, hand out",
    "rss_mib": "resident memory after the workload's runs",
    "peak_rss_mib": "the most there was of it since the process began",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As asked for. `settings` are fields of EngineConfig as text."""

    model: str | None = None
    workloads: tuple[str, ...] = workloads.DEFAULT_NAMES
    runs: int = 3
    max_s: float = 1e9  # of a workload's runs: no further one begins after it
    label: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
