"""The native kernels.

OCTAVO_KERNEL_OPTIONS gives the compiler's further options: `make test-asan` sets them.
"""

import os
from pathlib import Path

import pytest

from native_paths import EMULATED, EMULATION, PATHS
from octavo.config import EngineConfig
from octavo.kernels.cpu import Library
from octavo.kernels.cpu.build import build_library

OPTIONS = tuple(os.environ.get("OCTAVO_KERNEL_OPTIONS", "").split())


@pytest.fixture(scope="session", params=PATHS)
def library(request: pytest.FixtureRequest) -> Library:
    """With two threads."""
    isa, options = request.param, OPTIONS
    if isa == EMULATED:
        isa, options = "amx", (*OPTIONS, *EMULATION)
    path = build_library(EngineConfig(model=Path()).kernel_cache, options=options)
    try:
        return Library(path, isa, 2)
    except ValueError as exc:
        pytest.skip(f"{isa}: {exc}")
