"""The checks of `octavo doctor`: each looks at one thing and says its state and its fix."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from octavo.cli import shared_memory
from octavo.cli.ports import Ports, busy_ports
from octavo.cli.server_folder import (
    ServerFolderError,
    Wheel,
    find_libpython,
    find_wheel,
    running_python,
)

State = Literal["ok", "warn", "fatal"]

_MIN_GLIBC = (2, 35)  # the server's binary is linked with it
_MIN_GXX = 11  # the first to know AMX
_MIN_SHM_BYTES = 64 * 2**20  # two stubs with a first region of 16 MiB each, and their growth
_GOOD_SHM_BYTES = 256 * 2**20
_MIN_MEMORY_BYTES = 2 * 2**30
_MIN_DISK_BYTES = 2 * 2**30
# In the order of what each adds to the CPU kernels.
_CPU_FEATURES = {
    "avx2": "8 floats at once",
    "avx512f": "16 floats at once",
    "avx512_bf16": "bf16 dot products",
    "avx512_vnni": "int8 dot products",
    "amx_bf16": "bf16 matrix tiles",
    "amx_int8": "int8 matrix tiles",
}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    detail: str
    fix: str = ""


def check_python(version: tuple[int, int] | None = None) -> Check:
    major, minor = version or sys.version_info[:2]
    in_venv = sys.prefix != sys.base_prefix
    detail = f"{major}.{minor} ({sys.prefix})"
    if not (3, 10) <= (major, minor) <= (3, 12):
        return Check(
            "Python",
            "fatal",
            f"{detail}: the embedded server needs 3.10 to 3.12 (its stub needs numpy 1.26)",
            "rm -rf .venv, then make serve PYTHON=python3.12",
        )
    if not in_venv:
        return Check("Python", "warn", f"{detail}: not a virtual environment", "use make serve")
    return Check("Python", "ok", detail)


def check_packages() -> Check:
    """Versions from the installed metadata: importing torch takes seconds."""
    found: dict[str, str] = {}
    for name in ("torch", "numpy", "tokenizers", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return Check("packages", "fatal", f"{name} is not installed", "make serve installs it")
    detail = ", ".join(f"{name} {version}" for name, version in found.items())
    if int(found["numpy"].split(".")[0]) >= 2:
        return Check(
            "packages",
            "fatal",
            f"numpy {found['numpy']}: the embedded server's stub dies with numpy 2 or later",
            "pip install numpy==1.26.4",
        )
    return Check("packages", "ok", detail)


def check_compiler(compiler: str | None = None) -> Check:
    path = shutil.which(compiler or os.environ.get("CXX") or "g++")
    fix = "apt install g++"
    if path is None:
        detail = "no g++: CPU kernels cannot be built, the slow reference path is used"
        return Check("compiler", "warn", detail, fix)
    answer = subprocess.run([path, "-dumpfullversion", "-dumpversion"], capture_output=True)
    version = answer.stdout.decode().strip()
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) < _MIN_GXX:
        detail = f"{path} {version or 'of unknown version'}: older than {_MIN_GXX}, no AMX kernels"
        return Check("compiler", "warn", detail, fix)
    return Check("compiler", "ok", f"{path} {version}")


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str | None = None) -> Check:
    machine = machine or platform.machine()
    if machine != "x86_64":
        return Check(
            "CPU", "fatal", f"{machine}: the embedded server is built for x86_64", "use Docker"
        )
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    found = [f"{name} ({what})" for name, what in _CPU_FEATURES.items() if name in flags]
    cores = len(os.sched_getaffinity(0))
    if "avx2" not in flags:
        return Check("CPU", "warn", f"{cores} cores, no avx2: only the portable kernels run")
    return Check("CPU", "ok", f"{cores} cores, {', '.join(found)}")


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    text = meminfo.read_text(encoding="utf-8")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    available_bytes = int(match[1]) * 1024 if match else 0
    detail = f"{_size(available_bytes)} available"
    if available_bytes < _MIN_MEMORY_BYTES:
        fix = "stop other programs, or give less to the cache: --kv-cache-bytes 256MiB"
        return Check("memory", "warn", f"{detail}, under {_size(_MIN_MEMORY_BYTES)}", fix)
    return Check("memory", "ok", detail)


def check_gpu() -> Check:
    path = shutil.which("nvidia-smi")
    if path is None:
        return Check("GPU", "ok", "none: CPU mode")
    command = [path, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Check("GPU", "warn", f"nvidia-smi fails ({error}): CPU mode", "mend the driver")
    return Check("GPU", "ok", "; ".join(answer.stdout.decode().split("\n")).strip("; "))


def check_glibc(version: str | None = None) -> Check:
    version = version if version is not None else platform.libc_ver()[1]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _MIN_GLIBC:
        needed = ".".join(map(str, _MIN_GLIBC))
        detail = f"{version or 'not found'}: the embedded server needs {needed} or later"
        return Check("glibc", "fatal", detail, "Ubuntu 22.04, Debian 12 or later, or use Docker")
    return Check("glibc", "ok", version)


def check_shared_memory(shm_dir: Path = shared_memory.SHM_DIR) -> Check:
    try:
        status = os.statvfs(shm_dir)
    except OSError as error:
        return Check("shared memory", "fatal", f"{shm_dir}: {error.strerror}", "mount a tmpfs")
    total_bytes = status.f_blocks * status.f_frsize
    free_bytes = status.f_bavail * status.f_frsize
    return judge_shared_memory(shm_dir, total_bytes, free_bytes)


def judge_shared_memory(shm_dir: Path, total_bytes: int, free_bytes: int) -> Check:
    detail = f"{shm_dir}: {_size(free_bytes)} free of {_size(total_bytes)}"
    fix = "mount -o remount,size=1G /dev/shm; in a container: --shm-size=1g"
    if free_bytes < _MIN_SHM_BYTES:
        return Check("shared memory", "fatal", f"{detail}, under {_size(_MIN_SHM_BYTES)}", fix)
    if free_bytes < _GOOD_SHM_BYTES:
        return Check("shared memory", "warn", f"{detail}, under {_size(_GOOD_SHM_BYTES)}", fix)
    return Check("shared memory", "ok", detail)


def check_ports(ports: Ports, host: str = "127.0.0.1") -> Check:
    busy = busy_ports(ports, host)
    if busy:
        return Check(
            "ports",
            "fatal",
            "; ".join(f"{each.port} {each.reason}" for each in busy),
            "stop that process, or choose others: make serve PORT=9000 (octavo serve --port 9000)",
        )
    return Check("ports", "ok", f"{ports.http}, {ports.grpc} and {ports.metrics} are free")


def check_server() -> Check:
    try:
        wheel = find_wheel()
    except ServerFolderError as error:
        return Check("server", "fatal", str(error), "make serve installs it")
    return Check("server", "ok", f"Triton {wheel.triton_version} (nvidia-pytriton {wheel.version})")


def check_stub(wheel: Wheel | None = None, python: str | None = None) -> Check:
    """The stub of the running Python, and the libpython that it is linked with."""
    python = python or running_python()
    try:
        stub = (wheel or find_wheel()).stub(python)
    except ServerFolderError as error:
        return Check("stub", "fatal", str(error), "make serve installs it")
    if not stub.is_file():
        fix = "rm -rf .venv, then make serve PYTHON=python3.12"
        return Check("stub", "fatal", f"the server has none for Python {python}", fix)
    libpython = find_libpython(python)
    if libpython is None:
        return Check(
            "stub",
            "fatal",
            f"libpython{python}.so.1.0 is not found: the stub is linked with it",
            f"apt install libpython{python}, or a Python built with --enable-shared",
        )
    return Check("stub", "ok", f"for Python {python}, with {libpython}")


def check_stale_regions(regions: list[shared_memory.Region]) -> Check:
    if not regions:
        return Check("stale regions", "ok", "none")
    total_bytes = sum(region.size_bytes for region in regions)
    names = ", ".join(region.path.name for region in regions[:2])
    more = f" and {len(regions) - 2} more" if len(regions) > 2 else ""
    return Check(
        "stale regions",
        "warn",
        f"{len(regions)} of dead servers, {_size(total_bytes)}: {names}{more}",
        "octavo doctor --fix",
    )


def check_disk(folder: Path) -> Check:
    """Space for downloaded checkpoints."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free_bytes = shutil.disk_usage(existing).free
    detail = f"{_size(free_bytes)} free in {existing}"
    if free_bytes < _MIN_DISK_BYTES:
        return Check(
            "disk",
            "warn",
            f"{detail}: too little for most checkpoints",
            "set HF_HOME to a larger disk",
        )
    return Check("disk", "ok", detail)


def _size(size_bytes: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"
