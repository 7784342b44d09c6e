"""Swapped = not: a sequence whose blocks were moved to a tier goes on as if they had not been."""

import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from equivalences import POOLS, Case, pool_blocks
from factories import generate_checked, greedy
from octavo.engine import Engine

HOST = {"host_bytes": 2**28}


def swapping(case: Case, num_blocks: int, tiers: dict[str, Any], **settings: Any) -> Engine:
    settings = {"preemption": "swap", **settings}
    return case.engine(num_blocks=num_blocks, kv_tiers=tiers, **settings)


def assert_swapped(engine: Engine) -> None:
    counters = engine.scheduler.counters
    assert counters.preemptions["swap"] > 0 == counters.preemptions["recompute"]
    assert counters.saved_blocks > 0 and counters.loaded_blocks > 0


@pytest.mark.parametrize("num_blocks", [*POOLS, 100])
def test_swapped_equals_alone(case: Case, num_blocks: float) -> None:
    """From a pool that holds barely one sequence to one of 100 blocks."""
    if num_blocks < 1:
        num_blocks = pool_blocks(case, num_blocks)
    prompts = [prompt for prompt in case.prompts for _ in range(2)]
    engine = swapping(case, int(num_blocks), HOST)
    results = generate_checked(engine, prompts, case.params)
    if num_blocks < 100:
        assert_swapped(engine)
    # In the largest pool what a victim has left may still be there when it comes back.
    assert engine.scheduler.counters.preemptions["swap"] > 0
    for got, expected in zip(results, [a for a in case.alone for _ in range(2)], strict=True):
        case.compare(got, expected)
    assert all(len(result.token_ids) == case.max_tokens for result in results)
    engine.stop()


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_swapped_without_loss_computes_nothing_twice(
    exact_case: Case, block_size: int, enable_prefix_caching: bool
) -> None:
    case = exact_case
    engine = swapping(
        case, pool_blocks(case, 0.3, block_size), HOST, block_size=block_size,
        enable_prefix_caching=enable_prefix_caching,
    )  # fmt: skip
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert_swapped(engine)
    assert engine.scheduler.counters.recomputed_tokens["tier_loss"] == 0
    engine.stop()


@pytest.mark.parametrize("budget", [8, 64])
@pytest.mark.parametrize("tier", ["host", "disk"])
def test_swapped_in_chunks_while_others_join(
    exact_case: Case, budget: int, tier: str, tmp_path: Path
) -> None:
    case = exact_case
    tiers = HOST if tier == "host" else {"disk_path": str(tmp_path), "disk_bytes": 2**28}
    engine = swapping(
        case, pool_blocks(case, 0.25), tiers, max_num_batched_tokens=budget, max_num_seqs=8
    )
    joins = [3 * index for index in range(len(case.prompts))]
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params, joins))
    assert_swapped(engine)
    engine.stop()


@pytest.mark.parametrize("rate", ["30MB", "170MB", "10GB"])
@pytest.mark.parametrize("preemption", ["auto", "swap", "recompute"])
def test_any_link_and_any_choice_equal_alone(exact_case: Case, rate: str, preemption: str) -> None:
    case = exact_case
    tiers = {**HOST, "host_link_bytes_per_s": rate}
    engine = swapping(case, pool_blocks(case, 0.25), tiers, preemption=preemption)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    preemptions = engine.scheduler.counters.preemptions
    assert preemptions.total() > 0
    assert preemption == "auto" or preemptions[preemption] == preemptions.total()
    engine.stop()


def test_a_tier_too_small_costs_time_only(exact_case: Case) -> None:
    case = exact_case
    block_bytes = case.engine().runner.kv_cache.block_bytes
    tiers = {"host_bytes": block_bytes + 1024, "store_queue_bytes": block_bytes}
    engine = swapping(case, pool_blocks(case, 0.2), tiers, enable_prefix_caching=False)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    counters = engine.scheduler.counters
    assert counters.preemptions["swap"] > 0 and counters.recomputed_tokens.total() > 0
    engine.stop()


def test_a_disk_tier_keeps_prompts_for_the_next_start(exact_case: Case, tmp_path: Path) -> None:
    case = exact_case
    tiers = {"disk_path": str(tmp_path), "disk_bytes": 2**28}
    cold = case.engine(kv_tiers=tiers)
    case.assert_as_alone(generate_checked(cold, case.prompts, case.params))
    assert cold.scheduler.allocator.evictions.total() == 0
    cold.stop()
    warm = case.engine(kv_tiers=tiers)
    results = generate_checked(warm, case.prompts, case.params)
    case.assert_as_alone(results)
    hits = warm.scheduler.counters.prefix_hit_tokens
    assert hits["disk"] == sum((len(prompt) - 1) // 4 * 4 for prompt in case.prompts) > 0
    warm.stop()
    other = case.engine(kv_tiers=tiers, block_size=8)
    case.assert_as_alone(generate_checked(other, case.prompts, case.params))
    assert other.scheduler.counters.prefix_hit_tokens["disk"] == 0, "it is another format"
    other.stop()


def test_a_killed_engine_leaves_a_warm_disk(exact_case: Case, tmp_path: Path) -> None:
    """What it had computed is written although nothing came after it, and nobody stopped it."""
    prompt = exact_case.prompts[0]
    tiers = {"disk_path": str(tmp_path / "own"), "disk_bytes": 2**28}
    engine = exact_case.engine(kv_tiers=tiers)
    generate_checked(engine, [prompt], greedy(1))
    assert engine.tiers is not None and engine.tiers.flush(30)
    shutil.copytree(tmp_path / "own", tmp_path / "left", ignore=shutil.ignore_patterns("lock"))
    next_one = exact_case.engine(kv_tiers={**tiers, "disk_path": str(tmp_path / "left")})
    generate_checked(next_one, [prompt], greedy(1))
    hits = next_one.scheduler.counters.prefix_hit_tokens
    assert hits["disk"] == (len(prompt) - 1) // 4 * 4 > 0
    engine.stop()
    next_one.stop()


@pytest.mark.parametrize("fault", ["damaged", "cut", "gone", "folder gone"])
def test_a_disk_that_loses_blocks_costs_time_only(
    exact_case: Case, tmp_path: Path, fault: str
) -> None:
    case = exact_case
    tiers = {"disk_path": str(tmp_path), "disk_bytes": 2**28}
    cold = case.engine(kv_tiers=tiers)
    generate_checked(cold, case.prompts, case.params)
    cold.stop()
    engine = case.engine(kv_tiers=tiers)
    files = sorted(
        path for path in tmp_path.rglob("*") if path.stat().st_size > 1000 and path.is_file()
    )
    assert files
    for index, path in enumerate(files):
        content = bytearray(path.read_bytes())
        if fault == "damaged":
            content[-1 - index % 100] ^= 1
            path.write_bytes(content)
        elif fault == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
    if fault == "folder gone":
        for folder in {path.parent for path in files}:
            folder.rmdir()
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    counters = engine.scheduler.counters
    assert counters.prefix_hit_tokens["disk"] == 0 < counters.recomputed_tokens["tier_loss"]
    engine.stop()


def test_a_disk_that_fills_up_costs_time_only(
    exact_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault itself is planted, where the operating system would report it: tests/tiers have
    a real full disk."""
    case = exact_case
    engine = swapping(
        case, pool_blocks(case, 0.25), {"disk_path": str(tmp_path), "disk_bytes": 2**28}
    )
    calls = itertools.count()
    real = os.writev

    def full(*args: Any) -> int:
        if next(calls) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, "writev", full)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert next(calls) > 5 and engine.scheduler.counters.preemptions["swap"] > 0
    monkeypatch.undo()
    engine.stop()
