"""Native kernels of the CPU: C++ for AMX, AVX-512, AVX2 and whatever else, chosen when loaded."""

from collections.abc import Sequence
from pathlib import Path

from octavo.kernels.cpu.build import BuildError, build_library
from octavo.kernels.cpu.library import ISAS, Library, PackedLinear

__all__ = ["ISAS", "BuildError", "Library", "PackedLinear", "build_library", "load"]


def load(
    cache: Path, isa: str = "auto", num_threads: int = 1, cpus: Sequence[int] | None = None
) -> Library:
    """The kernels of `isa`, one of ISAS or "auto" for the fastest that this processor has, with
    `num_threads` threads, each on its core of `cpus` if these are given.

    Built on first use into the folder `cache`. Raises BuildError if that cannot be or what is there
    cannot be loaded, ValueError if the processor lacks what `isa` needs.
    """
    path = build_library(cache)
    try:
        return Library(path, isa, num_threads, cpus)
    except OSError as exc:
        raise BuildError(f"{exc}; remove it to have it built anew") from None
