"""The native kernels, of each instruction set that this processor has. AMX's tiles are emulated
in plain C++ beside them, so that what is built on tiles is tested everywhere.

OCTAVO_KERNEL_OPTIONS gives the compiler's further options: `make test-asan` sets them.
"""

import os
from pathlib import Path

import pytest

from octavo.config import EngineConfig
from octavo.kernels.cpu import ISAS, Library
from octavo.kernels.cpu.build import build_library

OPTIONS = tuple(os.environ.get("OCTAVO_KERNEL_OPTIONS", "").split())
EMULATED = "amx, emulated"
HAS_TILES = "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii")


@pytest.fixture(scope="session", params=[*ISAS[not HAS_TILES :], EMULATED])
def library(request: pytest.FixtureRequest) -> Library:
    """With two threads."""
    isa, options = request.param, OPTIONS
    if isa == EMULATED:
        isa, options = "amx", (*OPTIONS, "-DOCTAVO_AMX_EMULATED")
    path = build_library(EngineConfig(model=Path()).kernel_cache, options=options)
    try:
        return Library(path, isa, 2)
    except ValueError as exc:
        pytest.skip(f"{isa}: {exc}")
