"""The CPU kernels are built before the server starts, where people can see it."""

from pathlib import Path

import pytest

from octavo.cli import kernel_build


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; and no program on PATH but what a test puts into `bin`."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache"


def test_progress_is_shown_once(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "bin" / "g++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    compiler.chmod(0o755)
    kernel_build.build_ahead()
    out, err = capfd.readouterr()
    assert out == ""
    assert "octavo: building the CPU kernels" in err and "octavo: [1/" in err
    assert len(list((cache / "octavo" / "kernels").glob("kernels-*.so"))) == 1
    kernel_build.build_ahead()
    assert capfd.readouterr() == ("", "")


def test_no_compiler_is_said_and_no_obstacle(capfd: pytest.CaptureFixture[str]) -> None:
    kernel_build.build_ahead()
    assert "octavo: no g++: install it" in capfd.readouterr().err
