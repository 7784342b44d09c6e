"""Builds the CPU kernels before the server starts, where who waits can see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import octavo
from octavo.cli.paths import cache_dir

_SCRIPT = Path(octavo.__file__).parent / "kernels" / "cpu" / "build.py"


def build_ahead() -> None:
    """Does nothing if they are there. Progress and faults go to stderr; after a fault the server
    starts all the same, on the reference operators, and says so too.

    The script runs by itself, as the package it is in would load torch.
    """
    command = [sys.executable, "-I", str(_SCRIPT), "--cache", str(cache_dir() / "kernels")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
