"""Whatever happens to a tier: a miss or the right bytes, a count, and never an exception."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from tests.tiers.harness import (
    BLOCK_BYTES,
    FILE_BYTES,
    RedisProcess,
    key_of,
    opened,
)

ROOT = Path(__file__).parents[2]


def blocks_of(folder: Path) -> dict[bytes, Path]:
    """The files of the blocks, by what their names say."""
    files = [path for path in folder.rglob("*") if path.stat().st_size == FILE_BYTES]
    return {bytes.fromhex(path.stem): path for path in files}


@given(
    position=st.integers(0, FILE_BYTES - 1),
    flip=st.integers(1, 255),
    cut=st.none() | st.integers(0, FILE_BYTES - 1),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_damaged_file_is_a_miss(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, cut: int | None
) -> None:
    folder = tmp_path_factory.mktemp("disk")
    with opened(disk_path=folder, disk_bytes="1MB") as it:
        it.stored(1, 2, 3)
        path = blocks_of(folder)[key_of(2)]
        content = bytearray(path.read_bytes())
        content[position] ^= flip
        path.write_bytes(content if cut is None else content[:cut])
        assert it.fetched(1, 2, 3) == ["disk"], "what comes back is checked there, too"
        assert it.tiers.stats["disk"].errors["corrupt"] == 1
        it.stored(2)
        assert it.fetched(1, 2, 3) == ["disk"] * 3, "it can be stored again"


def test_a_file_under_another_name_is_a_miss(tmp_path: Path) -> None:
    with opened(disk_path=tmp_path, disk_bytes="1MB") as it:
        it.stored(1, 2)
        files = blocks_of(tmp_path)
        shutil.copyfile(files[key_of(1)], files[key_of(2)])
        assert it.fetched(1, 2) == ["disk"]


def test_a_folder_of_another_namespace_is_not_read(tmp_path: Path) -> None:
    with opened(disk_path=tmp_path, disk_bytes="1MB") as it:
        it.stored(1, 2)
    with opened(disk_path=tmp_path, disk_bytes="1MB", namespace=b"another model") as it:
        assert it.fetched(1, 2) == []


def test_a_folder_is_warm_after_a_restart(tmp_path: Path) -> None:
    with opened(disk_path=tmp_path, disk_bytes="1MB") as it:
        it.stored(1, 2, 3)
    path = next(iter(blocks_of(tmp_path).values()))
    (path.parent / (path.name + ".tmp")).write_bytes(b"left by a crash")
    with opened(disk_path=tmp_path, disk_bytes="1MB") as it:
        assert it.held(1, 2, 3) == 3
        assert it.fetched(1, 2, 3) == ["disk"] * 3
    with opened(disk_path=tmp_path, disk_bytes=2 * FILE_BYTES) as it:
        # The bound holds from the start, and the beginning stays; the probe took one's place.
        assert it.fetched(1) == ["disk"]
        assert it.tiers.gauges()["disk"].used_bytes <= 2 * FILE_BYTES
    assert len(blocks_of(tmp_path)) <= 2 and not list(tmp_path.rglob("*.tmp"))


def test_files_and_folders_that_vanish_are_misses(tmp_path: Path) -> None:
    with opened(disk_path=tmp_path / "kv", disk_bytes="1MB") as it:
        it.stored(1, 2, 3)
        blocks_of(tmp_path)[key_of(3)].unlink()
        assert it.fetched(1, 2, 3) == ["disk"] * 2
        shutil.rmtree(tmp_path / "kv")
        assert it.fetched(1, 2, 3) == []
        it.stored(4)
        it.wait_until(lambda: it.tiers.gauges()["disk"].is_up)
        it.stored(4)
        assert it.fetched(4) == ["disk"], "the folder is made again"


def test_two_engines_never_share_a_folder(tmp_path: Path) -> None:
    first = opened(disk_path=tmp_path, disk_bytes="1MB")
    with first, pytest.raises(ConfigError, match=str(tmp_path)):
        opened(disk_path=tmp_path, disk_bytes="1MB").__enter__()
    with opened(disk_path=tmp_path, disk_bytes="1MB") as it:
        it.stored(1)
        assert it.held(1) == 1


def test_a_file_system_that_takes_no_more_is_a_miss(tmp_path: Path) -> None:
    """In a process that the system lets write half a block: a real short write, then EFBIG."""
    code = f"""
        import resource
        from tests.tiers.harness import opened
        with opened(disk_path={str(tmp_path)!r}, disk_bytes="1MB", host_bytes="1MB") as it:
            it.stored(1, written_through=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, ({BLOCK_BYTES // 2}, resource.RLIM_INFINITY))
            it.stored(2, 3, written_through=True)
            assert it.held(2) == 0 and it.fetched(1) == ["disk"], "what is there can still be read"
            assert it.tiers.stats["disk"].errors.total() == 1
            assert it.tiers.stats["disk"].skipped_blocks.total() == 2
            assert not it.tiers.gauges()["disk"].is_up
            it.stored(4)
            assert it.fetched(4) == ["host"]
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            it.wait_until(lambda: it.tiers.gauges()["disk"].is_up)
            it.stored(5, written_through=True)
            assert it.fetched(5) == ["disk"]
    """
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environ, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("KV tier disk") <= 2, "one line when it fails, one when it is back"
    assert not [path for path in tmp_path.rglob("*.tmp*")], "no half file is left"


def test_a_server_that_is_killed_is_down_until_it_is_back(own_server: RedisProcess) -> None:
    settings = {"redis_url": own_server.url, "redis_bytes": "1MB", "host_bytes": "1MB"}
    with opened(**settings) as it:
        it.stored(1, 2, written_through=True)
        assert it.fetched(1, 2) == ["redis"] * 2
        own_server.kill()
        assert it.fetched(1, 2) == []
        assert not it.tiers.gauges()["redis"].is_up
        assert it.tiers.may_hold([key_of(9)]) == 0, "nothing waits for it"
        it.stored(3)
        assert it.fetched(3) == ["host"]
        own_server.start()
        it.wait_until(lambda: it.tiers.gauges()["redis"].is_up)
        assert it.fetched(1, 2) == [], "it has come back empty"
        it.stored(1, 2, written_through=True)
        assert it.fetched(1, 2) == ["redis"] * 2
        assert it.tiers.stats["redis"].errors.total() >= 1


@pytest.mark.parametrize("foreign", ["junk", "short", "list", "another block"])
def test_foreign_data_under_a_key_is_a_miss(server: RedisProcess, foreign: str) -> None:
    with opened(redis_url=server.url, redis_bytes="1MB") as it, server.client() as client:
        it.stored(1, 2)
        names = sorted(name for name in client.keys("octavo:kv:*") if not name.endswith(b"lru"))
        (name,) = [name for name in names if name.endswith(key_of(2))]
        if foreign == "list":
            client.delete(name)
            client.rpush(name, "a", "b")
        elif foreign == "another block":
            client.set(name, client.get(names[0] if names[0] != name else names[1]))
        else:
            client.set(name, b"x" * (FILE_BYTES if foreign == "junk" else 10))
        assert it.fetched(1, 2) == ["redis"]
        it.stored(2)
        assert it.fetched(1, 2) == ["redis"] * 2, "it can be stored again"


def test_a_server_without_memory_is_still_read(own_server: RedisProcess) -> None:
    settings = {"redis_url": own_server.url, "redis_bytes": "1MB"}
    with own_server.client() as client, opened(**settings) as it:
        it.stored(1)
        client.config_set("maxmemory", 1)
        it.stored(2)
        assert it.fetched(1) == ["redis"] and it.fetched(2) == []
        assert it.tiers.stats["redis"].errors["full"] >= 1
        client.config_set("maxmemory", 0)
        it.wait_until(lambda: it.tiers.gauges()["redis"].is_up)
        it.stored(2)
        assert it.fetched(1, 2) == ["redis"] * 2


def test_a_password_stays_out_of_what_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with opened(redis_url="redis://:s3cret@127.0.0.1:1/0", redis_bytes="1MB") as it:
        it.store(1)
        it.settle()
        assert it.fetched(1) == []
        assert "s3cret" not in repr(it.tiers) and "s3cret" not in caplog.text
        assert "KV tier redis" in caplog.text
