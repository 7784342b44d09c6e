"""The interface: where blocks go, where they are found, what does not wait, what is counted."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.config import TierConfig
from octavo.errors import ConfigError
from octavo.tiers import open_tiers
from tests.tiers.harness import (
    BLOCK_BYTES,
    FILE_BYTES,
    RedisProcess,
    config_of,
    key_of,
    keys_of,
    opened,
    rows_of,
)


def test_without_settings_there_are_none() -> None:
    assert open_tiers(TierConfig(), block_bytes=8, namespace=b"", on_arrival=list) is None


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("host_bytes", {"host_bytes": BLOCK_BYTES - 1}, BLOCK_BYTES),
        ("disk_bytes", {"disk_path": "unused", "disk_bytes": FILE_BYTES - 1}, FILE_BYTES),
        ("redis_bytes", {"redis_url": "redis://h", "redis_bytes": 1}, FILE_BYTES),
    ],
)
def test_a_tier_has_room_for_a_block(name: str, settings: dict[str, Any], least: int) -> None:
    with pytest.raises(ConfigError, match=rf"kv_tiers.{name} = \d+: should be at least {least}"):
        open_tiers(config_of(**settings), block_bytes=BLOCK_BYTES, namespace=b"", on_arrival=list)


def test_what_is_stored_comes_back(tmp_path: Path, server: RedisProcess) -> None:
    for settings, name in (
        ({"host_bytes": "1MB"}, "host"),
        ({"disk_path": tmp_path, "disk_bytes": "1MB"}, "disk"),
        ({"redis_url": server.url, "redis_bytes": "1MB"}, "redis"),
    ):
        with opened(**settings) as it:
            assert it.tiers.names == (name,)
            assert it.held(1) == 0 and it.fetched(1, 2) == []
            it.stored(1, 2, 3)
            assert it.held(1, 2, 3, 4) == 3
            assert it.held(4, 1) == 0
            assert it.fetched(1, 2, 3, 4) == [name] * 3
            stats, gauges = it.tiers.stats[name], it.tiers.gauges()[name]
            assert (stats.stored_blocks, stats.stored_bytes) == (3, 3 * BLOCK_BYTES)
            assert (stats.fetched_blocks, stats.fetched_bytes) == (3, 3 * BLOCK_BYTES)
            assert stats.hits == 3 and not stats.errors and not stats.skipped_blocks
            assert stats.store_s > 0 and stats.fetch_s > 0
            assert gauges.is_up and gauges.queued_bytes == 0
            assert gauges.used_bytes == 3 * (BLOCK_BYTES if name == "host" else FILE_BYTES)
            assert gauges.capacity_bytes == 10**6
            assert gauges.read_bytes_per_s > 0 and gauges.write_bytes_per_s > 0


def test_older_blocks_move_down(tmp_path: Path, server: RedisProcess) -> None:
    with opened(
        host_bytes=2 * BLOCK_BYTES,
        disk_path=tmp_path,
        disk_bytes=3 * FILE_BYTES,
        redis_url=server.url,
        redis_bytes=4 * FILE_BYTES,
    ) as it:
        # Of one store the last blocks count as the oldest: without its beginning none is of use.
        it.stored(*range(9))
        assert it.held(*range(9)) == 9
        assert it.fetched(*range(9)) == ["host"] * 2 + ["disk"] * 3 + ["redis"] * 4
        used = {name: gauges.used_bytes for name, gauges in it.tiers.gauges().items()}
        assert used == {
            "host": 2 * BLOCK_BYTES, "disk": 3 * FILE_BYTES, "redis": 4 * FILE_BYTES
        }  # fmt: skip
        it.stored(9)
        assert it.held(8) == 0, "there is no place below the last tier"
        assert it.fetched(9) == ["host"]
        assert {name: stats.evicted_blocks for name, stats in it.tiers.stats.items()} == {
            "host": 8, "disk": 5, "redis": 1
        }  # fmt: skip
        # Stored again, a block is where it is got back fastest.
        assert it.fetched(7) == ["redis"]
        it.stored(7)
        assert it.fetched(7) == ["host"]


def test_what_is_used_stays(tmp_path: Path) -> None:
    with opened(host_bytes=3 * BLOCK_BYTES) as it:
        it.stored(1, 2, 3)
        assert it.fetched(3) == ["host"]
        it.stored(4)
        assert [it.held(n) for n in (1, 2, 3, 4)] == [1, 0, 1, 1]
        assert it.tiers.gauges()["host"].used_bytes == 3 * BLOCK_BYTES


def test_written_through_goes_to_what_outlives_the_engine(
    tmp_path: Path, server: RedisProcess
) -> None:
    with opened(host_bytes="1MB", redis_url=server.url, redis_bytes="1MB") as it:
        it.stored(1, 2, written_through=True)
        assert it.fetched(1, 2) == ["redis", "redis"]
        assert it.tiers.stats["host"].stored_blocks == 0
    settings = {"disk_path": tmp_path, "disk_bytes": "1MB"}
    with opened(host_bytes="1MB", redis_url=server.url, redis_bytes="1MB", **settings) as it:
        it.stored(3, written_through=True)
        assert [it.tiers.stats[name].stored_blocks for name in it.tiers.names] == [0, 1, 1]
    with opened(host_bytes="1MB") as it:
        it.stored(1, written_through=True)
        assert it.held(1) == 0


def test_may_hold_counts_on_what_others_wrote(server: RedisProcess) -> None:
    settings = {"redis_url": server.url, "redis_bytes": "1MB"}
    with opened(**settings) as it, opened(**settings) as other:
        it.stored(1, 2)
        assert other.held(1, 2) == 0
        assert other.tiers.may_hold(keys_of(1, 2, 3)) == 3
        assert other.fetched(1, 2, 3) == ["redis", "redis"]
        assert other.held(1, 2, 3) == 2, "known from now on"
    with opened(host_bytes="1MB") as it:
        it.stored(1)
        assert it.tiers.may_hold(keys_of(1, 2)) == 1


def test_discarded_blocks_are_gone(tmp_path: Path, server: RedisProcess) -> None:
    with opened(
        host_bytes=BLOCK_BYTES, disk_path=tmp_path, disk_bytes=FILE_BYTES,
        redis_url=server.url, redis_bytes="1MB",
    ) as it:  # fmt: skip
        it.stored(1, 2, 3)
        assert it.fetched(1, 2, 3) == ["host", "disk", "redis"]
        it.tiers.discard(keys_of(1, 2, 3, 4))
        it.settle()
        assert it.held(1) == it.held(2) == it.held(3) == 0
        assert it.fetched(1) == it.fetched(2) == it.fetched(3) == []
        assert [gauges.used_bytes for gauges in it.tiers.gauges().values()] == [0, 0, 0]
        it.stored(1)
        assert it.fetched(1) == ["host"]


def test_blocks_on_their_way_are_found_and_can_be_discarded(tmp_path: Path) -> None:
    # A block takes 0.1 s, so that most of them wait.
    link = 10 * BLOCK_BYTES
    with opened(disk_path=tmp_path, disk_bytes="1MB", disk_link_bytes_per_s=link) as it:
        it.store(*range(5))
        assert it.held(*range(5)) == 5
        started_s = time.monotonic()
        fetch = it.wait(it.tiers.fetch(keys_of(*range(5))))
        assert len(fetch.rows) == 5 and time.monotonic() - started_s < 0.4
        assert np.array_equal(np.stack(fetch.rows), rows_of(fetch.keys))
        it.tiers.discard(keys_of(*range(5)))
        assert it.held(0) == 0
        it.store(0)
        assert it.held(0, 1) == 1, "the store comes after the removal"
        it.settle()
        assert it.held(0, 1) == 1 and it.held(4) == 0
        assert it.fetched(0, 1) == ["disk"]


def test_a_full_queue_drops_stores_and_counts_them(tmp_path: Path) -> None:
    with opened(
        disk_path=tmp_path, disk_bytes="1MB", disk_link_bytes_per_s=10 * BLOCK_BYTES,
        store_queue_bytes=3 * BLOCK_BYTES,
    ) as it:  # fmt: skip
        it.store(*range(5))  # more than the queue's bound, into an empty one
        for number in range(10, 60):
            it.store(number)
            assert it.tiers.gauges()["disk"].queued_bytes <= 5 * BLOCK_BYTES
        skipped = it.tiers.stats["disk"].skipped_blocks
        assert set(skipped) == {"queue_full"} and skipped["queue_full"] >= 40
        it.settle()
        stored = sum(it.held(number) for number in (*range(5), *range(10, 60)))
        assert stored + skipped["queue_full"] == 55
        it.stored(99)
        assert it.held(99) == 1


def test_a_full_queue_leaves_the_next_tier(tmp_path: Path) -> None:
    with opened(
        host_bytes="1MB", host_link_bytes_per_s=5 * BLOCK_BYTES, store_queue_bytes=1,
        disk_path=tmp_path, disk_bytes="1MB",
    ) as it:  # fmt: skip
        it.store(1)
        it.store(2)
        it.settle()
        assert it.fetched(2) == ["disk"]


def test_a_slow_tier_does_not_hold_up_the_one_above(tmp_path: Path) -> None:
    with opened(
        host_bytes=2 * BLOCK_BYTES, disk_path=tmp_path, disk_bytes="1MB",
        disk_link_bytes_per_s=2 * BLOCK_BYTES, store_queue_bytes=2 * BLOCK_BYTES,
    ) as it:  # fmt: skip
        for number in range(20):
            it.store(number)
            it.wait_until(lambda: it.tiers.gauges()["host"].queued_bytes == 0)
        assert it.held(19) == it.held(18) == 1
        assert it.tiers.stats["host"].stored_blocks == 20
        assert it.tiers.stats["disk"].skipped_blocks["queue_full"] > 0


def test_a_cancelled_fetch_ends_soon_and_wakes_nobody(tmp_path: Path) -> None:
    settings = {"disk_path": tmp_path, "disk_bytes": "10MB"}
    with opened(**settings) as it:
        it.stored(*range(200))
    with opened(**settings, disk_link_bytes_per_s=100 * BLOCK_BYTES) as it:
        arrived = it.num_arrived
        fetches = [it.tiers.fetch(keys_of(*range(200))) for _ in range(5)]  # 10 s in all
        started_s = time.monotonic()
        for fetch in fetches:
            fetch.cancel()
        it.settle()
        assert time.monotonic() - started_s < 5
        assert all(fetch.is_done for fetch in fetches) and it.num_arrived == arrived
        assert it.fetched(0) == ["disk"]


def test_close_ends_fetches_as_misses(tmp_path: Path) -> None:
    settings = {"disk_path": tmp_path, "disk_bytes": "10MB"}
    with opened(**settings) as it:
        it.stored(*range(200))
    with opened(**settings, disk_link_bytes_per_s=20 * BLOCK_BYTES) as it:
        fetches = [it.tiers.fetch(keys_of(*range(200))) for _ in range(3)]
        started_s = time.monotonic()
        it.tiers.close(0.1)
        assert time.monotonic() - started_s < 5
        assert all(fetch.is_done and len(fetch.rows) < 200 for fetch in fetches)
        it.store(1)
        late = it.tiers.fetch(keys_of(1))
        assert late.is_done and not late.rows


def test_expected_seconds_follow_rate_and_backlog(tmp_path: Path) -> None:
    link = 100 * BLOCK_BYTES
    with opened(disk_path=tmp_path, disk_bytes="1MB", disk_link_bytes_per_s=link) as it:
        tiers = it.tiers
        # The probe has seeded the rates; no transfer can be faster than the limit.
        assert 0.1 <= tiers.store_s(10) < 10 and 0.1 <= tiers.fetch_s(10) < 10
        assert tiers.store_s(0) == 0
        it.store(*range(100))
        assert tiers.store_s(10) > 0.5, "what waits goes first"
        assert tiers.fetch_s(keys_of(1, 2)) < 0.1, "they are still in memory"
        it.settle()
        assert tiers.fetch_s(keys_of(*range(100))) >= 1.0
        assert tiers.fetch_s(keys_of(200, 1)) == 0, "a miss takes no time"
        first = tiers.fetch(keys_of(*range(100)))
        second = tiers.fetch(keys_of(*range(100)))
        assert tiers.fetch_s(keys_of(0)) > 1.0
        it.wait(first), it.wait(second)


def test_a_fetch_from_memory_can_be_done_at_once() -> None:
    with opened(host_bytes="100MB", block_bytes=2**16) as it:
        it.stored(*range(100))
        few = it.tiers.fetch(keys_of(0, 1))
        assert few.is_done and it.num_arrived == 1
        many = it.tiers.fetch(keys_of(*range(100)))  # checksums of 6 MB
        assert len(it.wait(many).rows) == 100


def test_calls_do_not_wait_for_a_slow_link(tmp_path: Path, server: RedisProcess) -> None:
    with opened(
        disk_path=tmp_path, disk_bytes="1MB", disk_link_bytes_per_s=BLOCK_BYTES,
        redis_url=server.url, redis_bytes="1MB",
    ) as it:  # fmt: skip
        started_s = time.monotonic()
        it.store(*range(50))
        assert it.held(*range(50)) == 50
        fetch = it.tiers.fetch(keys_of(*range(60)))
        it.tiers.discard(keys_of(*range(50)))
        assert it.tiers.store_s(1) >= 0 and it.tiers.gauges()
        assert time.monotonic() - started_s < 1, "one block alone takes a second"
        it.wait(fetch)


def test_blocks_that_move_while_they_are_fetched_are_found(tmp_path: Path) -> None:
    """Each block is somewhere at any time, so no fetch may miss one."""
    with opened(host_bytes=4 * BLOCK_BYTES, disk_path=tmp_path, disk_bytes="10MB") as it:
        stop = threading.Event()
        it.stored(*range(8))

        def churn() -> None:
            number = 1000
            while not stop.is_set():
                it.store(number % 1200 + 1000)
                it.store(number % 8)
                number += 1
                if number % 10 == 0:
                    it.tiers.flush(10)

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for turn in range(300):
                fetch = it.wait(it.tiers.fetch(keys_of(*range(8))))
                assert len(fetch.rows) == 8, (turn, fetch.sources)
                assert np.array_equal(np.stack(fetch.rows), rows_of(fetch.keys))
        finally:
            stop.set()
            thread.join()
        assert not it.tiers.stats["disk"].errors and not it.tiers.stats["host"].errors


def test_memory_of_stored_rows_is_given_back() -> None:
    with opened(host_bytes=2 * BLOCK_BYTES) as it:
        keys = keys_of(*range(10))
        rows = rows_of(keys)
        gone = weakref.ref(rows)
        it.tiers.store(keys, rows)
        del rows
        it.settle()
        it.wait_until(lambda: gc.collect() is not None and gone() is None)
        assert it.held(0, 1, 2) == 2


def test_a_flipped_bit_in_memory_is_a_miss() -> None:
    with opened(host_bytes="1MB") as it:
        it.stored(1, 2)
        it.tiers.fetch(keys_of(2)).rows[0][17] ^= 1  # the row is the tier's own
        assert it.fetched(1, 2) == ["host"]
        assert it.tiers.stats["host"].errors == {"corrupt": 1}
        assert it.held(2) == 0
        it.stored(2)
        assert it.fetched(1, 2) == ["host", "host"]


@pytest.mark.parametrize("rows", [np.zeros((2, 3), np.uint8), np.zeros((1, BLOCK_BYTES), np.int8)])
def test_rows_have_the_one_form(rows: Any) -> None:
    with opened(host_bytes="1MB") as it, pytest.raises(AssertionError):
        it.tiers.store([key_of(1)], rows)
