from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo.cli.server_folder import (
    ServerFolderError,
    Wheel,
    find_libpython,
    find_wheel,
    prepare,
    running_python,
)


@pytest.fixture
def other_file_system() -> Iterator[Path]:
    path = Path(f"/dev/shm/octavo_test_{os.getpid()}_{secrets.token_hex(4)}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def help_text(binary: Path, libraries: tuple[Path, ...]) -> str:
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    command = [binary, "--help"]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stderr


def test_prepared_server_runs_and_has_the_stub_of_this_python(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    assert "--model-repository" in help_text(folder.binary, folder.library_path)
    stub = folder.backends / "python" / "triton_python_backend_stub"
    assert stub.read_bytes() == find_wheel().stub(running_python()).read_bytes()
    assert os.access(stub, os.X_OK)
    assert (folder.backends / "python" / "triton_python_backend_utils.py").is_file()


def test_second_call_finds_the_folder_of_the_first(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    made = first.binary.stat().st_ctime_ns
    assert prepare(tmp_path) == first
    assert first.binary.stat().st_ctime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [first.binary.parents[1].name]


def test_damaged_folder_is_built_anew(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    stub = folder.backends / "python" / "triton_python_backend_stub"
    stub.unlink()
    stub.write_bytes(b"half")
    assert prepare(tmp_path) == folder
    assert stub.stat().st_size > 1_000_000
    assert len(list(tmp_path.iterdir())) == 1


def test_files_are_copied_where_they_cannot_be_linked(other_file_system: Path) -> None:
    folder = prepare(other_file_system)
    assert folder.binary.stat().st_nlink == 1
    assert "--model-repository" in help_text(folder.binary, folder.library_path)
    made = folder.binary.stat().st_ctime_ns
    assert prepare(other_file_system).binary.stat().st_ctime_ns == made


def test_concurrent_callers_share_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: prepare(tmp_path), range(8)))
    assert len(folders) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_python_without_a_stub_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerFolderError, match=r"Python 3\.7: .* has no stub .*'3\.12'"):
        prepare(tmp_path, python="3.7")
    assert list(tmp_path.iterdir()) == []


def test_python_without_a_shared_library_is_named(tmp_path: Path) -> None:
    stub = tmp_path / "dist" / "python_backend_stubs" / "3.99" / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    (tmp_path / "dist" / "backends" / "python").mkdir(parents=True)
    wheel = Wheel("0.0.1", tmp_path / "dist", tmp_path)
    assert wheel.triton_version == "unknown"
    with pytest.raises(ServerFolderError, match=r"libpython3\.99\.so\.1\.0: not found"):
        prepare(tmp_path / "cache", wheel, "3.99")


def test_libpython_of_this_python_is_found() -> None:
    library = find_libpython()
    assert library is not None
    assert library.name == f"libpython{running_python()}.so.1.0"
