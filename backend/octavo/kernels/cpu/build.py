"""Builds the CPU kernels: once for each version of the sources, then from the cache.

`python -m octavo.kernels.cpu.build` builds them ahead, into the package's folder with --in-package,
where `build_library` looks first: for images whose users have no compiler.
"""

import argparse
import fcntl
import logging
import os
import platform
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
_IN_PACKAGE = FOLDER / "built"
_COMPILER = "g++"
_COMMON = ("-std=gnu++20", "-O3", "-g1", "-fPIC", "-pthread", "-fvisibility=hidden",
           "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi",
           "-Wno-uninitialized", "-Wno-maybe-uninitialized")  # fmt: skip
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi",
           "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512")  # fmt: skip
_ANY_UNITS: dict[str, tuple[str, ...]] = {
    "isa_portable.cpp": (),
    "api.cpp": (),
    "pack.cpp": (),
    "pool.cpp": (),
}
# No unit is built for the processor that builds it: the library runs on any of the architecture,
# and chooses when it is loaded.
_X86_UNITS = {"isa_amx.cpp": _AVX512, "isa_avx512.cpp": _AVX512, "isa_avx2.cpp": _AVX2}


class BuildError(Exception):
    """There is no compiler, or it failed; the message says what to do."""


def build_library(cache: Path, *, options: tuple[str, ...] = ()) -> Path:
    """The library of the present sources, built if it is neither in the package nor in `cache`.

    `options` are the compiler's, and part of what names the library. Raises BuildError.
    """
    name = f"kernels-{_digest(options)}.so"
    for folder in (_IN_PACKAGE, cache):
        if (folder / name).exists():
            return folder / name
    compiler = shutil.which(_COMPILER)
    if compiler is None:
        raise BuildError(f"no {_COMPILER}: install it (Debian: apt install g++)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several servers that start, one builds
            if not (cache / name).exists():
                _compile(compiler, cache / name, options)
    except OSError as exc:
        raise BuildError(f"{cache}: {exc}") from None
    return cache / name


def _units() -> dict[str, tuple[str, ...]]:
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return {**_X86_UNITS, **_ANY_UNITS} if is_x86 else dict(_ANY_UNITS)


def _digest(options: tuple[str, ...]) -> str:
    digest = sha256(repr((_units(), _COMMON, options, platform.machine())).encode())
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in (".cpp", ".h", ".inl"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, library: Path, options: tuple[str, ...]) -> None:
    units = _units()
    began_s = time.monotonic()
    log.info("building the CPU kernels, once for this version: %d units", len(units))
    with TemporaryDirectory(prefix="octavo-kernels-") as scratch:
        objects = {name: Path(scratch) / f"{name}.o" for name in units}

        def compile_unit(name: str) -> str:
            command = [compiler, *_COMMON, *units[name], *options, "-c", str(FOLDER / name)]
            _run([*command, "-o", str(objects[name])])
            return name

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            done = [pool.submit(compile_unit, name) for name in units]
            for number, future in enumerate(as_completed(done), 1):
                log.info(
                    "[%d/%d] %s, %.0f s", number, len(units), future.result(),
                    time.monotonic() - began_s,
                )  # fmt: skip
        built = Path(scratch) / "library.so"
        parts = map(str, objects.values())
        _run([compiler, "-shared", "-pthread", *options, *parts, "-o", str(built)])
        # In one act, so that no process ever loads half a library.
        moved = library.with_suffix(f".{os.getpid()}.new")
        shutil.copy(built, moved)
        moved.replace(library)
    log.info("built the CPU kernels in %.0f s: %s", time.monotonic() - began_s, library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        shown = "\n".join(done.stderr.splitlines()[:12])
        raise BuildError(f"{' '.join(command[:1])} failed on {command[-3]}:\n{shown}")
    if done.stderr:
        log.warning("%s", done.stderr.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description="Build Octavo's CPU kernels ahead.")
    parser.add_argument("--in-package", action="store_true", help="into the package's folder")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/octavo/kernels")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="octavo: %(message)s")
    try:
        print(build_library(_IN_PACKAGE if arguments.in_package else arguments.cache))
    except BuildError as exc:
        raise SystemExit(f"octavo: {exc}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
