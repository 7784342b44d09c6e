"""Blocks as files of a folder: FOLDER/ab/<key, 32 hex digits>.kv, header and row.

The folder is one engine's while it runs, held by a lock on FOLDER/lock. What lies there when it
starts is taken over, so a start is warm. Other namespaces' blocks count too, and age out.
"""

import errno
import fcntl
import os
import re
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np

from octavo.errors import ConfigError
from octavo.tiers.envelope import HEADER_BYTES, Envelope, Keys, Row
from octavo.tiers.tier import FaultKind, MoveDown, TierFault
from octavo.tiers.tier_stats import TierStats

_SUFFIX = ".kv"
_TEMPORARY = ".tmp"
_SHARD = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"([0-9a-f]{32})\.kv")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _fault(exc: OSError, *, writes_only: bool = False, num_stored: int = 0) -> TierFault:
    kind: FaultKind = "full" if exc.errno in _FULL else "io"
    return TierFault(kind, str(exc), writes_only=writes_only, num_stored=num_stored)


class DiskFolder:
    name = "disk"
    outlives_engine = True
    is_shared = False

    def __init__(
        self, path: Path, capacity_bytes: int, envelope: Envelope, stats: TierStats
    ) -> None:
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.capacity_blocks = capacity_bytes // envelope.size_bytes
        self.used_bytes = 0
        self._envelope = envelope
        self._stats = stats
        self._lock = threading.Lock()  # of the index, which both threads change
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # of files; used least recently first
        self._lock_file: int | None = None
        self._last_used_ns = 0

    @property
    def room_blocks(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes) // self._envelope.size_bytes

    def open(self) -> None:
        """Locks the folder and looks at what is in it. Raises TierFault, and ConfigError if
        another engine has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            self._scan()
            while self.used_bytes > self.capacity_bytes:
                self._evict(lambda key, load: None)
        except OSError as exc:
            raise _fault(exc) from None

    def close(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def holds(self, key: bytes) -> bool:
        return self._sizes.get(key) == self._envelope.size_bytes

    def read(self, keys: Keys) -> list[Row]:
        rows: list[Row] = []
        files: list[int] = []
        try:
            for key in keys:  # all are asked for before the first is waited for
                file = self._open(key)
                if file is None:
                    break
                files.append(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            for key, file in zip(keys, files, strict=False):
                row = self._read_checked(key, file)
                if row is None:
                    self._stats.count_error("corrupt")
                    self.remove([key])
                    break
                rows.append(row)
        except OSError as exc:
            raise _fault(exc) from None
        finally:
            for file in files:
                os.close(file)
        return rows

    def touch(self, keys: Keys) -> None:
        for key in keys:
            with suppress(OSError):  # the order after the next start, no more
                os.utime(self._path(key), ns=self._now_ns())
            with self._lock:
                if key in self._sizes:
                    self._sizes.move_to_end(key)

    def write(self, keys: Keys, rows: list[Row], move_down: MoveDown) -> int:
        stored = 0
        try:
            for key, row in zip(keys, rows, strict=True):
                if self.holds(key) and os.path.exists(self._path(key)):
                    self.touch([key])
                    continue
                self._unlink(key)  # of another size, if there is one
                while self.used_bytes + self._envelope.size_bytes > self.capacity_bytes:
                    self._evict(move_down)
                self._write_file(key, row)
                self._remember(key, self._envelope.size_bytes)
                stored += 1
        except OSError as exc:
            raise _fault(exc, writes_only=True, num_stored=stored) from None
        return stored

    def remove(self, keys: Keys) -> None:
        try:
            for key in keys:
                self._unlink(key)
        except OSError as exc:
            raise _fault(exc, writes_only=True) from None

    def _take(self) -> None:
        """The lock. One taken before is of no use if the folder has been replaced since."""
        path = self.path / "lock"
        if self._lock_file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._lock_file), os.stat(path)):
                    return
            self.close()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ConfigError(
                f"kv_tiers.disk_path = '{self.path}': another engine uses this folder; "
                "each needs one of its own"
            ) from None
        self._lock_file = file

    def _scan(self) -> None:
        """The index from the files that there are; temporary ones of a killed engine go."""
        found: list[tuple[int, bytes, int]] = []
        for shard in os.scandir(self.path):
            if not (_SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False)):
                continue
            for entry in os.scandir(shard):
                if entry.name.endswith(_TEMPORARY):
                    os.unlink(entry)
                elif (match := _FILE.fullmatch(entry.name)) and not entry.is_dir():
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, bytes.fromhex(match[1]), status.st_size))
        found.sort()
        with self._lock:
            self._sizes = OrderedDict((key, size) for _, key, size in found)
            self.used_bytes = sum(self._sizes.values())

    def _path(self, key: bytes) -> str:
        digits = key.hex()
        return f"{self.path}/{digits[:2]}/{digits}{_SUFFIX}"

    def _open(self, key: bytes) -> int | None:
        try:
            return os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno == errno.EIO:
                raise
            if key in self._sizes:  # else it was evicted a moment ago
                self._stats.count_error("vanished" if exc.errno == errno.ENOENT else "io")
                if exc.errno == errno.ENOENT:
                    self._forget(key)
            return None

    def _read_checked(self, key: bytes, file: int) -> Row | None:
        header = bytearray(HEADER_BYTES)
        row = np.empty(self._envelope.block_bytes, np.uint8)
        if os.fstat(file).st_size != self._envelope.size_bytes:
            return None
        if os.readv(file, [header, row.data]) != self._envelope.size_bytes:
            return None
        return row if header == self._envelope.header(key, row) else None

    def _load(self, key: bytes) -> Row | None:
        """A row that is about to move down, if it is one of this namespace."""
        try:
            file = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return self._read_checked(key, file)
        except OSError:
            return None
        finally:
            os.close(file)

    def _write_file(self, key: bytes, row: Row) -> None:
        """Whole or not at all, under its name; without fsync, as the checksum shows what a crash
        of the machine has left."""
        path = self._path(key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(path + _TEMPORARY, flags, 0o600)
        except FileNotFoundError:  # the first of its two digits; never the folder itself
            os.mkdir(os.path.dirname(path), 0o700)
            file = os.open(path + _TEMPORARY, flags, 0o600)
        try:
            try:
                header = self._envelope.header(key, row)
                written = os.writev(file, [header, row.data])
                while written < self._envelope.size_bytes:  # nearly full: the next one says so
                    written += os.write(file, (header + row.tobytes())[written:])
                os.utime(file, ns=self._now_ns())
            finally:
                os.close(file)
            os.rename(path + _TEMPORARY, path)
        except OSError:
            with suppress(OSError):
                os.unlink(path + _TEMPORARY)
            raise

    def _now_ns(self) -> tuple[int, int]:
        """Later than ever before, so that the order of use can be read from the files."""
        self._last_used_ns = max(self._last_used_ns + 1, time.time_ns())
        return self._last_used_ns, self._last_used_ns

    def _evict(self, move_down: MoveDown) -> None:
        with self._lock:
            key = next(iter(self._sizes))
        if self.holds(key):
            move_down(key, lambda: self._load(key))
        self._unlink(key)
        self._stats.count_evicted(1)

    def _unlink(self, key: bytes) -> None:
        """If that fails it stays in the index: its bytes are still there."""
        if key in self._sizes:
            with suppress(FileNotFoundError):
                os.unlink(self._path(key))
            self._forget(key)

    def _remember(self, key: bytes, size: int) -> None:
        with self._lock:
            self._sizes[key] = size
            self.used_bytes += size

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self.used_bytes -= self._sizes.pop(key, 0)
