"""The native kernels.

OCTAVO_KERNEL_OPTIONS gives the compiler's further options: `make test-asan` sets them.
"""

import os
from pathlib import Path
from types import ModuleType

import pytest

from native_paths import EMULATED, EMULATION, PATHS
from octavo import kernels
from octavo.config import EngineConfig
from octavo.kernels.cpu import Library
from octavo.kernels.cpu.build import build_library

OPTIONS = tuple(os.environ.get("OCTAVO_KERNEL_OPTIONS", "").split())


def load(path: str, num_threads: int) -> Library:
    isa, options = path, OPTIONS
    if isa == EMULATED:
        isa, options = "amx", (*OPTIONS, *EMULATION)
    built = build_library(EngineConfig(model=Path()).kernel_cache, options=options)
    try:
        return Library(built, isa, num_threads)
    except ValueError as exc:
        pytest.skip(f"{isa}: {exc}")


@pytest.fixture(scope="session", params=PATHS)
def library(request: pytest.FixtureRequest) -> Library:
    """With two threads."""
    return load(request.param, 2)


@pytest.fixture(scope="session", params=PATHS)
def libraries(request: pytest.FixtureRequest) -> list[Library]:
    """The same kernels with one, two and five threads."""
    return [load(request.param, num_threads) for num_threads in (1, 2, 5)]


@pytest.fixture(
    scope="session", params=[None, *PATHS], ids=["reference", *(f"cpu: {path}" for path in PATHS)]
)
def operators(request: pytest.FixtureRequest) -> ModuleType | Library:
    """The reference operators, or the native ones of the same names."""
    return kernels if request.param is None else load(request.param, 2)
