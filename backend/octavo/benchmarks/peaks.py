"""The machine's peaks, measured: streaming reads of memory and products.

By the native kernels where they are loaded: products in registers. Otherwise by torch, on as many
threads as it uses in this process: products of large matrices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from octavo.kernels.cpu import Library

Kind = Literal["float32", "bfloat16", "float16", "int8"]  # of numbers that are multiplied

# Many times the last level cache of most CPUs; a pass takes some 10 ms.
READ_BYTES = 2**30
_ROWS = 2048  # of the square matrices: each element is used often enough that memory is no limit
_PASSES = 5


def read_bytes_per_s(library: Library | None, num_bytes: int = READ_BYTES) -> float:
    """Of all threads that read a buffer from one end to the other, the library's if there is one:
    of some passes its median, or torch's best."""
    if library is not None:
        return library.read_bandwidth(num_bytes)
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32)
    return buffer.nbytes / _shortest_s(buffer.sum)


def matrix_flops_per_s(library: Library | None, kind: Kind) -> float:
    """Of all threads, for numbers of `kind`."""
    if library is not None:
        assert kind != "float16"
        return library.matrix_peak(kind)
    a, b = (torch.ones(_ROWS, _ROWS, dtype=getattr(torch, kind)) for _ in range(2))
    multiply: Callable[[], Tensor] = lambda: torch.nn.functional.linear(a, b)  # noqa: E731
    if kind == "int8":
        multiply = lambda: torch._int_mm(a, b)  # noqa: E731
    return 2 * _ROWS**3 / _shortest_s(multiply)


def _shortest_s(act: Callable[[], object]) -> float:
    act()  # pages are mapped, threads awake
    elapsed = []
    for _ in range(_PASSES):
        began_s = time.perf_counter()
        act()
        elapsed.append(time.perf_counter() - began_s)
    return min(elapsed)
