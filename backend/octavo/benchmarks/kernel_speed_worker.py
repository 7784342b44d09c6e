"""Measures `kernel_speed` in a process of its own.

`python -m octavo.benchmarks.kernel_speed_worker` is given Options, and tells a `line` for each
case; see `worker`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from octavo.benchmarks.kernel_cases import Case, Cases
from octavo.benchmarks.kernel_speed import Line, Options, check_ops
from octavo.benchmarks.peaks import Kind, matrix_flops_per_s, read_bytes_per_s
from octavo.benchmarks.shapes import decoder_shape
from octavo.benchmarks.workloads import rounded
from octavo.errors import ConfigError
from octavo.kernels import cpu
from octavo.kernels.cpu import Library
from octavo.models.model_config import read_model_config
from octavo.planner.roofline import DecoderShape
from octavo.worker import serve

# Of TinyLlama/TinyLlama-1.1B-Chat-v1.0.
_DEFAULT_SHAPE = DecoderShape(2048, 5632, 22, 32, 4, 64, 32_000)
_WARM_UP_CALLS, _LEAST_CALLS = 2, 5


@torch.inference_mode()
def measure(options: Options) -> Iterator[Line]:
    """A line for each case. Raises ConfigError."""
    check_ops(options.ops)
    torch.manual_seed(0)
    torch.set_num_threads(options.num_threads or len(os.sched_getaffinity(0)))
    shape = _DEFAULT_SHAPE
    if options.model is not None:
        shape = decoder_shape(read_model_config(Path(options.model)))
    library = load_library(options, torch.get_num_threads())
    dtype: torch.dtype = getattr(torch, options.dtype)
    cases = Cases(shape, dtype, options.rotated_bytes, library)
    matrix_peaks: dict[Kind, float] = {}
    num_lines = 0
    for op in options.ops:
        # Anew for each op: what a shared machine gives changes within minutes.
        bandwidth = read_bytes_per_s(library)
        for case in cases.of(op):
            kind = cast(Kind, case.kind)
            if kind not in matrix_peaks:
                matrix_peaks[kind] = matrix_flops_per_s(library, kind)
            elapsed_s, calls = time_of(case, options.min_s)
            line = _line(case, elapsed_s, calls, bandwidth, matrix_peaks[kind])
            num_lines += 1
            yield {**line, "kernels": "reference" if library is None else library.isa}
    if num_lines == 0:
        raise ConfigError(
            f"--ops = {', '.join(options.ops)}: the native kernels have it within the product "
            "before it; add --kernels reference"
        )


def load_library(options: Options, num_threads: int) -> Library | None:
    """None: the reference operators. Raises ConfigError."""
    if options.kernels == "reference":
        return None
    if options.dtype == "float16":
        raise ConfigError(
            "--dtype = float16: the native kernels have none; add --kernels reference"
        )
    assert options.kernel_cache
    try:
        return cpu.load(Path(options.kernel_cache), options.kernels, num_threads)
    except (cpu.BuildError, ValueError) as error:
        raise ConfigError(f"--kernels = {options.kernels}: {error}") from None


def time_of(case: Case, min_s: float) -> tuple[float, int]:
    """Seconds of a call, median, and how many there were. Calls take turns through the inputs, so
    that each finds its own where it lay longest ago."""
    turns = cycle(case.inputs)
    for inputs in islice(turns, _WARM_UP_CALLS):
        case.act(*inputs)
    elapsed: list[float] = []
    end_s = time.perf_counter() + min_s
    while len(elapsed) < _LEAST_CALLS or time.perf_counter() < end_s:
        inputs = next(turns)
        began_s = time.perf_counter()
        case.act(*inputs)
        elapsed.append(time.perf_counter() - began_s)
    return median(elapsed), len(elapsed)


def _line(case: Case, elapsed_s: float, calls: int, bandwidth: float, matrix_peak: float) -> Line:
    floor_s, bound = case.work.floor_s(bandwidth, matrix_peak)
    return {
        "op": case.op,
        "shape": case.shape,
        "format": case.format,
        "threads": torch.get_num_threads(),
        "time_us": rounded(1e6 * elapsed_s),
        "gbs": rounded(case.work.bytes / elapsed_s / 1e9),
        "gflops": rounded(case.work.flops / elapsed_s / 1e9),
        "bound": bound,
        "share_ratio": rounded(floor_s / elapsed_s),
        "read_gbs": rounded(bandwidth / 1e9),
        "matrix_gflops": rounded(matrix_peak / 1e9),
        "rotated_mib": round(len(case.inputs) * case.copy_bytes / 2**20, 1),
        "calls": calls,
    }


def _events(options: dict[str, Any]) -> Iterator[dict[str, object]]:
    for line in measure(Options(**options)):
        yield {"line": line}


if __name__ == "__main__":
    serve(_events)
