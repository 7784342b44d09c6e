from __future__ import annotations

import mmap
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cli import shared_memory
from octavo.cli.shared_memory import SHM_DIR

SIZE_BYTES = 1 << 16


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix of our own in the real /dev/shm: other servers may be running."""
    prefix = f"octavo_test_{os.getpid()}_{secrets.token_hex(4)}_"
    yield prefix
    for path in SHM_DIR.glob(f"{prefix}*"):
        path.unlink()


def make_region(name: str) -> Path:
    path = SHM_DIR / name
    path.write_bytes(bytes(SIZE_BYTES))
    return path


def stale_names(prefix: str, min_age_s: float = 0) -> list[str]:
    regions = shared_memory.stale_regions([prefix], min_age_s=min_age_s)
    return [region.path.name for region in regions]


def test_region_is_stale_only_once_the_process_that_maps_it_is_gone(prefix: str) -> None:
    path = make_region(f"{prefix}mapped")
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'r+b'); region = mmap.mmap(file.fileno(), 0); "
        "file.close(); print('mapped', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        assert stale_names(prefix) == []
        process.kill()
    assert stale_names(prefix) == [f"{prefix}mapped"]


def test_region_mapped_by_this_process_is_not_stale(prefix: str) -> None:
    path = make_region(f"{prefix}own")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert stale_names(prefix) == []
    assert stale_names(prefix) == [f"{prefix}own"]


def test_young_region_is_not_stale_since_its_stub_may_be_about_to_map_it(prefix: str) -> None:
    make_region(f"{prefix}young")
    assert stale_names(prefix, min_age_s=5) == []
    assert stale_names(prefix, min_age_s=0) == [f"{prefix}young"]


def test_regions_of_other_prefixes_are_left_alone(prefix: str) -> None:
    make_region(f"{prefix}a_1")
    make_region(f"{prefix}b_1")
    assert stale_names(f"{prefix}a_") == [f"{prefix}a_1"]


def test_clear_removes_the_regions_and_counts_their_bytes(prefix: str) -> None:
    paths = [make_region(f"{prefix}{index}") for index in range(2)]
    regions = shared_memory.stale_regions([prefix], min_age_s=0)
    paths[0].unlink()  # another launcher was quicker
    assert shared_memory.clear(regions) == SIZE_BYTES
    assert not paths[1].exists()


def test_a_folder_that_does_not_exist_holds_no_regions(tmp_path: Path) -> None:
    assert shared_memory.stale_regions(["octavo_"], shm_dir=tmp_path / "absent") == []


def test_launch_prefixes_differ_and_begin_with_the_prefix_of_this_pid_namespace() -> None:
    first, second = shared_memory.launch_prefix(), shared_memory.launch_prefix()
    assert first != second
    assert first.startswith(shared_memory.own_prefix())
    namespace = os.stat("/proc/self/ns/pid").st_ino
    assert f"_{namespace}_" in shared_memory.own_prefix()
