"""Read bandwidth, measured beside an engine by its kernels.

In a process of its own, so that the buffer is no part of the engine's memory:
`python -m octavo.benchmarks.read_probe THREADS KERNELS CACHE`. Each line of stdin asks for a
measurement, a line of stdout is its bytes per second; the process ends with stdin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class ReadProbe:
    """Asks such a process. The engine should be idle meanwhile."""

    def __init__(self, num_threads: int, kernels: str, kernel_cache: Path) -> None:
        """kernels: an instruction set, or "reference"."""
        arguments = [str(num_threads), kernels, str(kernel_cache)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "octavo.benchmarks.read_probe", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read_bytes_per_s(self) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the bandwidth probe ended with {self._process.wait()}")
        return float(answer)

    def __enter__(self) -> ReadProbe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()


def main() -> None:
    import torch

    from octavo.benchmarks.peaks import read_bytes_per_s
    from octavo.kernels import cpu

    num_threads, kernels, cache = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(num_threads)
    library = None if kernels == "reference" else cpu.load(cache, kernels, num_threads)
    for _ in sys.stdin:
        answer = read_bytes_per_s(library)
        try:
            print(answer, flush=True)
        except BrokenPipeError:  # who asked is gone
            os._exit(0)


if __name__ == "__main__":
    main()
