"""What measured: versions and machine, for the numbers to be read by."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("octavo", "torch", "numpy")}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}


def machine() -> dict[str, object]:
    return {
        "cpu_model": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_1min": os.getloadavg()[0],  # above the cores in use: others were at work
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
