"""Shared-memory regions of Python-backend stubs: whose they are, and which are stale.

A stub that is killed leaves its region in /dev/shm for good. Enough of them fill it, and a
server that starts among them can die of a lock it finds there.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from octavo.cli import processes

SHM_DIR = Path("/dev/shm")
TRITON_PREFIX = "triton_python_backend_shm_region_"
_OCTAVO_PREFIX = "octavo_shm_"
# A region exists for a moment before its stub maps it.
_MIN_AGE_S = 5.0


@dataclass(frozen=True, slots=True)
class Region:
    path: Path
    size_bytes: int
    age_s: float


def own_prefix(proc: Path = processes.PROC) -> str:
    """Prefix of the regions of every server started here.

    It names the PID namespace: a container that shares /dev/shm with others does not see their
    processes, so it must never judge their regions.
    """
    try:
        namespace = os.readlink(proc / "self" / "ns" / "pid").strip("pid:[]")
    except OSError:
        namespace = "0"
    return f"{_OCTAVO_PREFIX}{namespace}_"


def launch_prefix() -> str:
    """A prefix for one launch, so that its regions and stubs can be told from all others."""
    return f"{own_prefix()}{os.getpid()}_{secrets.token_hex(4)}_"


def stale_regions(
    prefixes: Iterable[str],
    *,
    shm_dir: Path = SHM_DIR,
    proc: Path = processes.PROC,
    min_age_s: float = _MIN_AGE_S,
) -> list[Region]:
    """Regions of this user with one of the prefixes that no process maps."""
    candidates = [
        region for region in _regions(tuple(prefixes), shm_dir) if region.age_s >= min_age_s
    ]
    if not candidates:
        return []
    mapped = processes.mapped_file_names(proc)
    return [region for region in candidates if region.path.name not in mapped]


def clear(regions: Iterable[Region]) -> int:
    """Removes the regions; returns the bytes that were freed."""
    freed_bytes = 0
    for region in regions:
        try:
            region.path.unlink()
        except FileNotFoundError:
            continue
        freed_bytes += region.size_bytes
    return freed_bytes


def _regions(prefixes: tuple[str, ...], shm_dir: Path) -> list[Region]:
    found: list[Region] = []
    try:
        entries = sorted(shm_dir.iterdir())
    except OSError:
        return found
    for path in entries:
        if not path.name.startswith(prefixes):
            continue
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if status.st_uid == os.getuid():
            age_s = time.time() - max(status.st_mtime, status.st_ctime)
            found.append(Region(path, status.st_size, age_s))
    return found
