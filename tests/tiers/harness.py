"""Tiers over small blocks, and a Redis server of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from octavo.config import TierConfig, make_config
from octavo.tiers import Fetch, Tiers, open_tiers
from octavo.tiers.envelope import HEADER_BYTES

BLOCK_BYTES = 1000
FILE_BYTES = BLOCK_BYTES + HEADER_BYTES
NAMESPACE = b"a model and its formats"


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "little")


def keys_of(*numbers: int) -> list[bytes]:
    return [key_of(number) for number in numbers]


def rows_of(keys: Sequence[bytes], block_bytes: int = BLOCK_BYTES) -> NDArray[np.uint8]:
    """The one content of each key."""
    seeds = [int.from_bytes(key, "little") for key in keys]
    rows = [np.random.default_rng(seed).integers(0, 256, block_bytes, np.uint8) for seed in seeds]
    return np.stack(rows)


def config_of(**values: Any) -> TierConfig:
    return make_config(model="m", kv_tiers=values).kv_tiers


@dataclass
class Opened:
    """Tiers, with waiting in place of polling."""

    tiers: Tiers
    block_bytes: int
    arrived: threading.Condition = field(default_factory=threading.Condition)
    num_arrived: int = 0

    def store(self, *numbers: int, written_through: bool = False) -> None:
        keys = keys_of(*numbers)
        rows = rows_of(keys, self.block_bytes)
        self.tiers.store(keys, rows, written_through=written_through)

    def stored(self, *numbers: int, written_through: bool = False) -> None:
        self.store(*numbers, written_through=written_through)
        self.settle()

    def settle(self) -> None:
        assert self.tiers.flush(30)

    def wait(self, fetch: Fetch) -> Fetch:
        with self.arrived:
            assert self.arrived.wait_for(lambda: fetch.is_done, 30)
        return fetch

    def fetched(self, *numbers: int) -> list[str]:
        """The sources of what came back, whose bytes are checked."""
        fetch = self.wait(self.tiers.fetch(keys_of(*numbers)))
        assert len(fetch.rows) == len(fetch.sources) <= len(numbers)
        if fetch.rows:
            expected = rows_of(fetch.keys[: len(fetch.rows)], self.block_bytes)
            assert np.array_equal(np.stack(fetch.rows), expected)
        assert all(row.dtype == np.uint8 and row.flags.c_contiguous for row in fetch.rows)
        self.settle()
        return fetch.sources

    def held(self, *numbers: int) -> int:
        return self.tiers.held(keys_of(*numbers))

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, "it did not come about"
            time.sleep(0.02)


@contextmanager
def opened(
    *, block_bytes: int = BLOCK_BYTES, namespace: bytes = NAMESPACE, **settings: Any
) -> Iterator[Opened]:
    """Closed at the end, with no thread left."""
    arrived = threading.Condition()

    def on_arrival() -> None:
        with arrived:
            made.num_arrived += 1
            arrived.notify_all()

    made: Opened = Opened(None, block_bytes, arrived)  # type: ignore[arg-type]
    before = set(threading.enumerate())
    tiers = open_tiers(
        config_of(**settings), block_bytes=block_bytes, namespace=namespace, on_arrival=on_arrival
    )
    assert tiers is not None
    made.tiers = tiers
    try:
        yield made
    finally:
        tiers.close(10)
        left = [t for t in set(threading.enumerate()) - before if t.name.startswith("octavo-kv")]
        assert not left, left


@dataclass
class RedisProcess:
    port: int
    folder: Path
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def start(self) -> None:
        path = shutil.which("redis-server")
        if path is None:
            reason = "redis-server is not installed: apt-get install redis-server (Debian, Ubuntu)"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        command = [path, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.folder), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[RedisProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RedisProcess(port, folder, arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()
