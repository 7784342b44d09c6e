"""The folder the embedded Triton server runs from.

The nvidia-pytriton wheel ships one server and a stub for each Python version. The server looks
for a single stub beside its Python backend, so it runs from a folder of its own that holds the
server, the backend and the stub of the running Python.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from octavo.errors import OctavoError

WHEEL = "nvidia-pytriton"
TRITON_VERSIONS = {"0.7.0": "2.51.0"}  # the wheel names its server nowhere
_BINARY = "bin/tritonserver"
_STUB = "backends/python/triton_python_backend_stub"


class ServerFolderError(OctavoError):
    """Something the embedded server needs is missing: the text says what and how to get it."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """What the installed wheel holds."""

    version: str
    dist: Path
    libraries: Path

    @property
    def triton_version(self) -> str:
        return TRITON_VERSIONS.get(self.version, "unknown")

    def stub(self, python: str) -> Path:
        return self.dist / "python_backend_stubs" / python / "triton_python_backend_stub"


@dataclass(frozen=True, slots=True)
class ServerFolder:
    version: str  # Triton's
    binary: Path
    backends: Path
    library_path: tuple[Path, ...]  # for LD_LIBRARY_PATH


def running_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find_wheel() -> Wheel:
    try:
        version = metadata.version(WHEEL)
    except metadata.PackageNotFoundError:
        raise ServerFolderError(
            f"{WHEEL} is not installed: pip install --no-deps {WHEEL}==0.7.0"
        ) from None
    for name in ("purelib", "platlib"):
        site = Path(sysconfig.get_path(name))
        dist = site / "pytriton" / "tritonserver"
        if (dist / _BINARY).is_file():
            return Wheel(version, dist, site / "nvidia_pytriton.libs")
    raise ServerFolderError(f"{WHEEL} {version} holds no tritonserver for this platform")


def find_libpython(python: str | None = None) -> Path | None:
    """The shared libpython that the stub is linked with; a static Python has none."""
    name = f"libpython{python or running_python()}.so.1.0"
    library_dir = sysconfig.get_config_var("LIBDIR") or ""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in (
        Path(library_dir),
        Path(library_dir, multiarch),
        Path(sys.base_prefix, "lib"),
        Path("/usr/lib64"),
    ):
        if (folder / name).exists():
            return folder / name
    return None


def prepare(cache: Path, wheel: Wheel | None = None, python: str | None = None) -> ServerFolder:
    """Builds the folder under `cache`, or finds it there; safe against concurrent callers."""
    wheel = wheel or find_wheel()
    python = python or running_python()
    contents = _contents(wheel, python)
    libpython = find_libpython(python)
    if libpython is None:
        raise ServerFolderError(
            f"libpython{python}.so.1.0: not found; use a Python built with --enable-shared "
            f"(Debian and Ubuntu: apt install libpython{python})"
        )
    folder = cache / f"tritonserver-{wheel.triton_version}-py{python.replace('.', '')}"
    if not _is_complete(folder, contents):
        _build(folder, contents)
    return ServerFolder(
        version=wheel.triton_version,
        binary=folder / _BINARY,
        backends=folder / "backends",
        library_path=(wheel.libraries, libpython.parent),
    )


def _contents(wheel: Wheel, python: str) -> dict[str, Path]:
    """Path in the folder -> file of the wheel."""
    stub = wheel.stub(python)
    if not stub.is_file():
        known = sorted(each.name for each in stub.parent.parent.iterdir())
        raise ServerFolderError(
            f"Python {python}: {WHEEL} {wheel.version} has no stub for it (only {known})"
        )
    backend = wheel.dist / "backends" / "python"
    return {
        _BINARY: wheel.dist / _BINARY,
        _STUB: stub,
        **{f"backends/python/{each.name}": each for each in backend.iterdir() if each.is_file()},
    }


def _is_complete(folder: Path, contents: dict[str, Path]) -> bool:
    try:
        return all(
            (folder / name).stat().st_size == source.stat().st_size
            and int((folder / name).stat().st_mtime) == int(source.stat().st_mtime)
            for name, source in contents.items()
        )
    except FileNotFoundError:
        return False


def _build(folder: Path, contents: dict[str, Path]) -> None:
    """Fills a temporary folder and renames it, so that no half-made folder is ever seen."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, source in contents.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, fresh / name)
        fresh.chmod(0o755)
        _replace(fresh, folder, contents)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(fresh: Path, folder: Path, contents: dict[str, Path]) -> None:
    try:
        fresh.rename(folder)
        return
    except OSError:
        if _is_complete(folder, contents):  # another launcher was quicker
            return
    # A folder of another state of the wheel. Servers that run from it keep their open files.
    outdated = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        folder.rename(outdated / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(outdated, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or hard links to others' files are forbidden
        shutil.copy2(source, target)
