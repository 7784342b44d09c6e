"""Building the CPU kernels: once for each version of their sources, and loudly if it fails."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from factories import make_engine
from native_paths import PATHS
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.kernels.cpu import ISAS, BuildError
from octavo.kernels.cpu.build import FOLDER, build_library


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A g++ that writes down its calls and makes empty files; first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "g++"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        'while [ "$1" != -o ]; do shift; done\n: > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_the_second_time_it_is_there(
    compiler: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    library = build_library(tmp_path / "cache")
    assert library.parent == tmp_path / "cache"
    calls = compiler.read_text().splitlines()
    assert len(calls) == len(list(FOLDER.glob("*.cpp"))) + 1  # and the link
    assert f"[{len(calls) - 1}/{len(calls) - 1}]" in caplog.text
    assert build_library(tmp_path / "cache") == library
    assert compiler.read_text().splitlines() == calls
    assert sorted(p.name for p in library.parent.iterdir()) == sorted([library.name, "lock"])


def test_options_and_sources_name_the_library(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build_library(tmp_path / "cache")
    assert build_library(tmp_path / "cache", options=("-DANY",)) != plain
    assert compiler.read_text().count("-DANY") > 1
    changed = tmp_path / "sources"
    shutil.copytree(FOLDER, changed, ignore=shutil.ignore_patterns("built", "__pycache__"))
    with (changed / "vec.h").open("a") as file:
        file.write("\n")
    monkeypatch.setattr("octavo.kernels.cpu.build.FOLDER", changed)
    assert build_library(tmp_path / "cache") != plain


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no g\+\+.*apt install g\+\+"):
        build_library(tmp_path / "cache")


def test_a_compiler_that_fails(compiler: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "g++"
    script.write_text("#!/bin/sh\necho vec.h:7: error: no >&2\nexit 1\n")
    with pytest.raises(BuildError, match=r"(?s)failed on .*\.cpp.*vec\.h:7: error: no"):
        build_library(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_a_cache_that_cannot_be_written(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="file"):
        build_library(tmp_path / "file" / "cache")


def test_an_engine_without_them_says_so(
    toy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = make_engine(toy_folder, kernel_cache=tmp_path / "cache")
    assert engine.runner.kernels == "reference"
    assert "CANNOT BE BUILT" in caplog.text and "many times slower" in caplog.text


def test_a_library_that_cannot_be_loaded_is_named(
    compiler: Path, toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(toy_folder, kernel_cache=tmp_path / "cache")  # the compiler's is empty
    assert engine.runner.kernels == "reference"
    (library,) = (tmp_path / "cache").glob("*.so")
    assert "CANNOT BE BUILT" in caplog.text and str(library) in caplog.text


def test_float16_says_that_it_is_slow(toy_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(toy_folder, dtype="float16")
    assert engine.runner.kernels == "reference"
    assert "float16" in caplog.text and "many times slower" in caplog.text


def test_kernels_are_chosen(toy_folder: Path) -> None:
    assert make_engine(toy_folder).runner.kernels in ISAS
    for isa in ("portable", "reference"):
        assert make_engine(toy_folder, kernels=isa).runner.kernels == isa


@pytest.mark.skipif("amx" in PATHS, reason="it has AMX")
def test_what_the_processor_lacks(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"kernels = 'amx': this processor has .*portable"):
        make_engine(toy_folder, kernels="amx")


def test_cores_of_threads(toy_folder: Path) -> None:
    core = max(os.sched_getaffinity(0))
    engine = make_engine(toy_folder, num_threads=2, thread_cpus=[core, core])
    engine.start()
    try:
        cores = {}
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # others may end meanwhile
                name = (task / "comm").read_text().strip()
                cores.setdefault(name, []).append(os.sched_getaffinity(int(task.name)))
        assert engine._thread is not None and engine._thread.native_id is not None
        assert os.sched_getaffinity(engine._thread.native_id) == {core}
        assert {core} in cores["octavo-kernel"]
    finally:
        engine.stop()


def test_cores_that_cannot_be(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"thread_cpus = \[0, 1\]: num_threads is 1"):
        make_engine(toy_folder, num_threads=1, thread_cpus=[0, 1])
    with pytest.raises(ConfigError, match="thread_cpus: core 9999"):
        make_engine(toy_folder, num_threads=1, thread_cpus=[9999])


@pytest.mark.slow
def test_ahead_of_use_without_the_package(tmp_path: Path) -> None:
    """As the image does it: the folder alone, with nothing installed."""
    folder = tmp_path / "cpu"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("built", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "build.py"), "--in-package"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (library,) = (folder / "built").glob("kernels-*.so")
    assert done.stdout.strip() == str(library)
    assert library.name == build_library(EngineConfig(model=Path()).kernel_cache).name
