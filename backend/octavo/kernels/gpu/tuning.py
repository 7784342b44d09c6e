"""Which of a kernel's declared tile sizes is the fastest, found on the device and kept in a file.

A choice holds for one device, one version of the Triton language and one text of the kernel. It
decides in which order a kernel sums, so bits are the same from run to run as long as the file is.
"""

import hashlib
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources

log = logging.getLogger(__name__)

# Names of a kernel's numbers, as BLOCK_N or num_warps.
Config = dict[str, int]
_WARM_UPS = 3
_REPEATS = 21
# More than any L2 cache holds, and long enough to write that launches are queued meanwhile.
_FLUSH_BYTES = 512 * 2**20


class Tuner:
    """Chooses for one device, with the choices of earlier processes in `folder`."""

    def __init__(
        self, folder: Path, device: str, seconds: Callable[[Callable[[], object]], float]
    ) -> None:
        """`seconds` runs a launch and says how long it takes."""
        self._folder = folder
        self._device = device
        self._seconds = seconds
        self._choices: dict[Path, dict[str, Config]] = {}

    def choose(
        self,
        name: str,
        key: str,
        configs: Sequence[Config],
        run: Callable[[Config], object],
        *,
        source: str,
        num_bytes: int = 0,
    ) -> Config:
        """See the function `choose`."""
        header = {
            "device": self._device, "triton": triton.__version__, "source": _digest_of(source)
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(header).encode()).hexdigest()
        path = self._folder / f"{name}-{digest[:16]}.json"
        if path not in self._choices:
            self._choices[path] = _read(path, header)
        known = self._choices[path].get(key)
        if known in configs:
            return configs[configs.index(known)]
        config, seconds = self._fastest(configs, run)
        rate = f", {num_bytes / seconds / 1e12:.2f} TB/s of bytes" if num_bytes else ""
        log.info(
            "tuned %s %s: %s; %.0f us%s",
            name, key, ", ".join(f"{k} {v}" for k, v in config.items()), seconds * 1e6, rate,
        )  # fmt: skip
        # With what other processes have found meanwhile.
        theirs = _read(path, header, logging.DEBUG)
        self._choices[path] = {**self._choices[path], **theirs, key: config}
        _write(path, {**header, "choices": self._choices[path]})
        return config

    def _fastest(
        self, configs: Sequence[Config], run: Callable[[Config], object]
    ) -> tuple[Config, float]:
        timed: list[tuple[float, int]] = []
        for index, config in enumerate(configs):
            try:
                timed.append((self._seconds(lambda config=config: run(config)), index))
            except OutOfResources:  # a tile too large for this device
                if index == len(configs) - 1 and not timed:
                    raise
        seconds, index = min(timed)
        return configs[index], seconds


def choose(
    name: str,
    key: str,
    configs: Sequence[Config],
    run: Callable[[Config], object],
    *,
    source: str,
    num_bytes: int = 0,
) -> Config:
    """The fastest of `configs` for the kernel `name` at `key`, its shapes and types.

    `run` launches it with one of them. The first use on a GPU times them all, which needs a second
    or so and is no part of a graph's capture; without a GPU it is the first of them. source: the
    file that the kernel is in; num_bytes: what a launch reads, for the log.
    """
    if is_interpreted() or not torch.cuda.is_available():
        return configs[0]
    return _tuner(torch.cuda.get_device_name()).choose(
        name, key, configs, run, source=source, num_bytes=num_bytes
    )


def set_cache(folder: Path) -> None:
    """Where choices are kept; ~/.cache/octavo/kernels unless this has been called."""
    global _folder
    _folder = folder
    _tuner.cache_clear()


def is_interpreted() -> bool:
    """Whether kernels run in the Triton language's interpreter."""
    return bool(triton.knobs.runtime.interpret)


def median_seconds(run: Callable[[], object]) -> float:
    """What a launch takes on the current GPU if its L2 cache holds nothing of use."""
    assert not torch.cuda.is_current_stream_capturing(), "tile sizes are chosen before a capture"
    for _ in range(_WARM_UPS):
        run()
    flushed = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    spans = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        begin.record()
        run()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in spans) / 1e3


_folder: Path | None = None


@cache
def _tuner(device: str) -> Tuner:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Tuner(_folder or base / "octavo" / "kernels", device, median_seconds)


@cache
def _digest_of(source: str) -> str:
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _read(path: Path, header: dict[str, str], level: int = logging.WARNING) -> dict[str, Config]:
    """The choices in a file; none, said at `level`, if it is not what this module writes."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        reason = str(exc)
    else:
        choices = content.pop("choices", None) if isinstance(content, dict) else None
        if isinstance(choices, dict) and content == header:
            return choices
        reason = "it is not this kernel's and device's"
    log.log(level, "tile sizes: %s is ignored, they are timed anew: %s", path, reason)
    return {}


def _write(path: Path, content: dict[str, object]) -> None:
    """In one act. A folder that cannot be written costs later processes their time, no more."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except OSError as exc:
        log.warning("tile sizes: %s cannot be written, so they are not kept: %s", path, exc)
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
