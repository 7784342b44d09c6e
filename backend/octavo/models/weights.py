"""Reads safetensors checkpoints. Nothing else is opened: a pickle can run code when loaded."""

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.errors import ConfigError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HASHED_AT_ONCE = 16 * 2**20
_LOADABLE = (torch.bfloat16, torch.float16, torch.float32)


class Checkpoint:
    """The tensors of a folder, taken one by one and checked against the expected shape."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.dtype = dtype
        self._device = device or torch.device("cpu")
        self._shard_of: dict[str, str] = {}
        self._shards: dict[str, Any] = {}
        for shard, names in _shards(folder).items():
            self._shards[shard] = _open(folder / shard)
            held = set(self._shards[shard].keys())
            for name in names or held:
                if name not in held:
                    raise ConfigError(f"{folder / shard}: tensor {name} is missing")
                self._shard_of[name] = shard
        self._left = set(self._shard_of)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shards.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    @property
    def names(self) -> list[str]:
        """Of all tensors, sorted."""
        return sorted(self._shard_of)

    def as_stored(self, name: str) -> Tensor:
        """A tensor of whatever shape and type, read from the file as it is looked at."""
        if name not in self._shard_of:
            raise ConfigError(f"checkpoint: tensor {name} is missing")
        tensor: Tensor = self._shards[self._shard_of[name]].get_tensor(name)
        return tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """A copy of one tensor in the engine's type, on its device. Raises ConfigError if it is
        missing, of another shape, or of a type that needs more than a cast."""
        tensor = self._read(name, shape)
        if tensor.dtype not in _LOADABLE:
            raise ConfigError(
                f"checkpoint: tensor {name} is {tensor.dtype}; supported: 16 and 32 bit"
            )
        return tensor.to(self._device, self.dtype, copy=True)

    def take_as_stored(
        self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
    ) -> Tensor:
        """A copy of one tensor, which must be of one of `dtypes`, on the engine's device. Raises
        ConfigError."""
        tensor = self._read(name, shape)
        if tensor.dtype not in dtypes:
            shown = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ConfigError(f"checkpoint: tensor {name} is {tensor.dtype}; supported: {shown}")
        return tensor.to(self._device, copy=True)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._shard_of:
            raise ConfigError(f"checkpoint: tensor {name} {list(shape)} is missing")
        tensor = self.as_stored(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"checkpoint: tensor {name} has shape {list(tensor.shape)}; "
                f"config.json asks for {list(shape)}"
            )
        self._left.discard(name)
        return tensor

    def check_all_taken(self, ignored: tuple[str, ...]) -> None:
        """Raises ConfigError if tensors are left that the decoder has no use for."""
        left = sorted(name for name in self._left if not name.endswith(ignored))
        if left:
            shown = ", ".join(left[:5]) + (" …" if len(left) > 5 else "")
            raise ConfigError(f"checkpoint: {len(left)} tensors the decoder does not know: {shown}")


def checkpoint_digest(folder: Path, num_threads: int) -> bytes:
    """SHA-256 over every byte of the weights' files: names, types, shapes and contents, and the
    index, which says where each tensor is taken from if two files have it.

    All of them, as a fine-tune may change no more than the rows of a few tokens. The files are
    cut into pieces that threads hash side by side; they have just been read, so what limits is
    SHA-256, 1.8 GB/s a core (x86's SHA extensions). Raises ConfigError.
    """
    pieces = [
        (folder / shard, begin)
        for shard in sorted(_shards(folder))
        for begin in range(0, _size(folder / shard), _HASHED_AT_ONCE)
    ]
    if (folder / _INDEX).exists():
        pieces.append((folder / _INDEX, 0))
    with ThreadPoolExecutor(num_threads, thread_name_prefix="octavo-digest") as pool:
        return sha256(b"".join(pool.map(_piece_digest, *zip(*pieces, strict=True)))).digest()


def _piece_digest(path: Path, begin: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return sha256(file.read(_HASHED_AT_ONCE)).digest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as exc:
        raise ConfigError(f"{path}: {exc}") from None


def _shards(folder: Path) -> dict[str, list[str]]:
    """Shard file → the tensors that the index expects in it (none named: all it has)."""
    if (folder / _INDEX).exists():
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            weight_map = dict(index["weight_map"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ConfigError(f"{folder / _INDEX}: no readable weight_map ({exc})") from None
        shards: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            shard = str(shard)
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ConfigError(
                    f"{folder / _INDEX}: {shard!r} is not a safetensors file beside it"
                )
            shards.setdefault(shard, []).append(name)
        return shards
    if (folder / _SINGLE).exists():
        return {_SINGLE: []}
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"{folder}: {pickles[0]} is a pickle checkpoint, which can run code when loaded; "
            "convert it to safetensors"
        )
    raise ConfigError(f"{folder}: neither {_SINGLE} nor {_INDEX} is there")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as exc:
        raise ConfigError(f"{path}: {exc}") from None
