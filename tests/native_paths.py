"""The native kernels' paths that a test can run here: those of the processor, and AMX's with its
tiles emulated in plain C++, so that what is built on tiles is tested everywhere."""

from pathlib import Path

from octavo.kernels.cpu import ISAS

_HAS_TILES = "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii")

EMULATED = "amx, emulated"
EMULATION = ("-DOCTAVO_AMX_EMULATED",)  # of the compiler
PATHS = [*ISAS[not _HAS_TILES :], EMULATED]
