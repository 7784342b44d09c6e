"""What the metrics say after requests whose every token is known."""

import re
import time
from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import pytest
import triton_python_backend_utils as pb_utils

from octavo import __version__
from octavo.serving.metric_table import METRICS
from octavo.serving.metrics import collect
from octavo.stats import LATENCY_BUCKETS_S
from tests.serving.checkpoints import SCRIPT
from tests.serving.harness import GREEDY, Served, StepGate, request, wait_until

Serve = Callable[..., Served]

# So long that only what is meant to misses them.
EASY_SLO = {"slo.ttft_s": 60, "slo.tpot_s": 60}
HISTOGRAMS = [metric.name for metric in METRICS if metric.kind == "histogram"]


def value(name: str, **labels: str) -> float:
    """Of one metric as the server has it; 0 if there is none of these labels."""
    every = {"model": "llm", "version": "1", **labels}
    (family,) = [family for family in pb_utils.MetricFamily.created if family.name == name]
    metric = family.metrics.get(frozenset(every.items()))
    return 0.0 if metric is None else float(metric.value())


def test_metrics_tell_exactly_what_happened(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, **EASY_SLO)
    for max_tokens in (1, 5, 30):  # prompts of <s> A
        served.ask("A", stream=True, sampling={**GREEDY, "max_tokens": max_tokens})
    # A prompt of <s> X b to its end: c … ~ and the end of sequence.
    ends = served.ask("Xb", sampling={"temperature": 0, "max_tokens": 100})
    until_end = len(SCRIPT.split("b")[1].encode()) + 1
    assert ends.text == "Xb" + SCRIPT.split("b")[1]
    served.ask("A", sampling={**GREEDY, "max_tokens": 4, "stop": "DE"})  # in the last token
    for bad in ({"n": 0}, {"max_tokens": 999}, {"x": 1}):
        served.ask("A", sampling=bad)
    gate = StepGate(served)
    cancelled = request("A", sampling=GREEDY)
    served.execute(cancelled)
    for _ in range(3):
        gate.wait()
        gate.let_through()
    gate.wait()
    cancelled.sender.cancelled = True
    wait_until(lambda: bool(served.engine._inbox.cancelled))
    gate.open()  # the step that is held goes through: 4 tokens
    cancelled.wait()
    served.finalize()

    finished = {
        reason: value("octavo_requests_total", finish_reason=reason)
        for reason in ("length", "stop", "cancelled", "deadline", "error")
    }
    assert finished == {"length": 3, "stop": 2, "cancelled": 1, "deadline": 0, "error": 0}
    assert value("octavo_invalid_requests_total") == 3
    tokens = 1 + 5 + 30 + until_end + 4
    assert value("octavo_generation_tokens_total") == tokens + 4
    assert value("octavo_prompt_tokens_total") == 3 * 2 + 3 + 2 + 2
    assert value("octavo_prefill_chunks_total") == 6
    assert value("octavo_steps_total") == tokens + 4  # each alone: one token a step
    assert value("octavo_good_requests_total") == 5
    assert value("octavo_good_tokens_total") == tokens
    assert value("octavo_preemptions_total", kind="recompute") == 0
    assert value("octavo_recomputed_tokens_total", cause="preemption") == 0
    busy = {p: value("octavo_busy_seconds_total", phase=p) for p in ("prefill", "decode", "mixed")}
    assert busy["prefill"] > 0 and busy["decode"] > 0 and busy["mixed"] == 0
    assert value("octavo_request_queue_time_seconds_count") == 6
    assert value("octavo_time_to_first_token_seconds_count") == 5  # none of the cancelled one
    assert value("octavo_time_per_output_token_seconds_count") == 5  # none of the one-token one
    assert value("octavo_e2e_request_latency_seconds_count") == 6


def test_metrics_return_to_zero_when_nothing_runs(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=3)
    gate = StepGate(served)
    asked = [request("A", sampling={**GREEDY, "max_tokens": 3}) for _ in range(2)]
    cancelled = request("A", sampling=GREEDY)
    served.execute(*asked, cancelled)
    for _ in range(2):  # the first step may have begun before all had come
        gate.wait()
        gate.let_through()
    gate.wait()
    served.flush_metrics()
    assert value("octavo_num_requests_running") == 1
    assert value("octavo_num_requests_waiting") == 2
    assert value("octavo_kv_blocks_used") == 1
    total = value("octavo_kv_blocks_total")
    assert total == served.engine.scheduler.allocator.num_blocks
    assert value("octavo_kv_cache_usage_ratio") == 1 / total
    assert value("octavo_kv_fragmentation_ratio") == 1 - 3 / 4  # <s> A B in a block of 4
    cancelled.sender.cancelled = True
    wait_until(lambda: bool(served.engine._inbox.cancelled))
    gate.open()
    for each in (*asked, cancelled):
        each.wait()
    wait_until(lambda: served.engine.gauges.num_running == 0)
    served.flush_metrics()
    for name in ("num_requests_running", "num_requests_waiting", "kv_blocks_used"):
        assert value(f"octavo_{name}") == 0
    assert value("octavo_kv_cache_usage_ratio") == value("octavo_kv_fragmentation_ratio") == 0
    assert value("octavo_kv_blocks_total") == total
    assert value("octavo_engine_up") == 1


def test_metrics_return_to_zero_after_the_last_one_is_cancelled(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder)
    gate = StepGate(served)
    asked = request("A", sampling=GREEDY)
    served.execute(asked)
    gate.wait()
    gate.let_through()
    gate.wait()
    asked.sender.cancelled = True
    wait_until(lambda: bool(served.engine._inbox.cancelled))
    gate.open()
    asked.wait()
    wait_until(lambda: served.engine.gauges.num_running == 0)
    served.flush_metrics()
    assert value("octavo_num_requests_running") == value("octavo_kv_blocks_used") == 0


def test_metrics_histograms_are_consistent(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    for max_tokens in (1, 2, 20, 40):
        served.ask("A", stream=True, sampling={**GREEDY, "max_tokens": max_tokens})
    served.finalize()
    bounds = [*(f"{bound:g}" for bound in LATENCY_BUCKETS_S), "+Inf"]
    for name in (name for name in HISTOGRAMS if "kv_block" not in name):
        counts = [value(f"{name}_bucket", le=bound) for bound in bounds]
        assert counts == sorted(counts) and counts[-1] == value(f"{name}_count") > 0
        each = [counts[0], *(after - before for before, after in pairwise(counts))]
        lowest = sum(n * bound for n, bound in zip(each[1:], LATENCY_BUCKETS_S, strict=True))
        highest = sum(n * bound for n, bound in zip(each, LATENCY_BUCKETS_S, strict=False))
        assert each[-1] == 0 and lowest <= value(f"{name}_sum") <= highest


def test_metrics_give_only_what_has_changed(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    served.ask("A", sampling=GREEDY)
    wait_until(lambda: served.engine.gauges.num_running == 0)
    served.flush_metrics()

    def calls() -> dict[str, int]:
        return {
            f.name: sum(metric.num_calls for metric in f.metrics.values())
            for f in pb_utils.MetricFamily.created
            if f.name != "octavo_idle_seconds_total"  # which does not stand still
        }

    before, tokens = calls(), value("octavo_generation_tokens_total")
    served.flush_metrics()
    assert calls() == before
    served.ask("A", sampling={**GREEDY, "max_tokens": 3})
    wait_until(lambda: served.engine.gauges.num_running == 0)
    served.flush_metrics()
    changed = {name for name, count in calls().items() if count != before[name]}
    assert {"octavo_generation_tokens_total", "octavo_requests_total"} <= changed
    assert changed.isdisjoint({"octavo_preemptions_total", "octavo_kv_blocks_total"})
    assert value("octavo_generation_tokens_total") == tokens + 3


def test_metrics_of_all_names_and_labels_are_there_from_the_start(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, price_usd_per_hour=3.2, price_as_of="2026-11-20")
    created = {family.name: family for family in pb_utils.MetricFamily.created}
    assert len(created) == len(pb_utils.MetricFamily.created)
    histograms = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    # These begin with a request, or its end.
    of_requests = {"tenant", "tokens"}
    later = {metric.name for metric in METRICS if of_requests & {*metric.labels}}
    # Of the engine itself.
    later -= {
        "octavo_cost_usd_total", "octavo_prefix_cache_held_seconds_total",
        "octavo_prefix_cache_held_usd_total",
    }  # fmt: skip
    # And these are there for tiers, and for what has been measured.
    elsewhere = "_kv_(tier|swap)|_quality_(?!gate|margin)"
    later |= {name for name in map(attrgetter("name"), METRICS) if re.search(elsewhere, name)}
    assert set(created) == {*(metric.name for metric in METRICS), *histograms} - {
        *HISTOGRAMS, *later,
    }  # fmt: skip
    served.ask("A", sampling=GREEDY)
    served.flush_metrics()
    for name, kind, labels, _ in collect(served.engine, served.stats, served.billing):
        assert name.startswith("octavo_")
        family = {f.name: f for f in pb_utils.MetricFamily.created}[name]
        assert family.kind == kind.upper()
        (listed,) = [m for m in METRICS if m.name == re.sub("_(bucket|sum|count)$", "", name)]
        assert tuple(labels) == (("le",) if name.endswith("_bucket") else listed.labels)
        assert frozenset({"model": "llm", "version": "1", **labels}.items()) in family.metrics


@pytest.mark.parametrize(
    ("slo", "good_requests", "good_tokens", "missed"),
    [
        ({}, 2, 1 + 20, {"ttft": 0, "tpot": 0}),
        ({"slo.ttft_s": 1e-9}, 0, 0, {"ttft": 2, "tpot": 0}),
        # One token has no time per output token to miss.
        ({"slo.tpot_s": 1e-9}, 1, 1, {"ttft": 0, "tpot": 1}),
    ],
)
def test_metrics_count_requests_that_meet_the_slo(
    serve: Serve,
    scripted_folder: Path,
    slo: dict[str, float],
    good_requests: int,
    good_tokens: int,
    missed: dict[str, int],
) -> None:
    served = serve(scripted_folder, **{**EASY_SLO, **slo})
    for max_tokens in (1, 20):
        served.ask("A", stream=True, sampling={**GREEDY, "max_tokens": max_tokens})
    served.ask("A", sampling={"n": 0})
    served.finalize()
    assert value("octavo_good_requests_total") == good_requests
    assert value("octavo_good_tokens_total") == good_tokens
    assert value("octavo_requests_total", finish_reason="length") == 2
    of_two_tokens = {"ttft": 2, "tpot": 1}
    for name, count in missed.items():
        met = value("octavo_slo_requests_total", slo=name, outcome="met")
        assert value("octavo_slo_requests_total", slo=name, outcome="missed") == count
        assert met == of_two_tokens[name] - count


def test_metrics_say_what_runs_and_since_when(serve: Serve, scripted_folder: Path) -> None:
    before_s = time.time()
    served = serve(scripted_folder)
    assert before_s <= value("octavo_engine_start_timestamp_seconds") <= time.time()
    what = {"engine_version": __version__, "checkpoint": scripted_folder.name}
    assert value("octavo_engine_info", **what, device=served.engine.runner.device.type) == 1


def test_metrics_count_preemptions(serve: Serve, random_folder: Path) -> None:
    # 12 blocks of 4 tokens; 2 layers of 2 heads of 16 values, keys and values, float32.
    block_bytes = 4 * 2 * 2 * 2 * 16 * 4
    served = serve(
        random_folder,
        kv_cache_bytes=12 * block_bytes,
        max_num_seqs=4,
        enable_prefix_caching=False,
    )
    asked = [request("la" * 4, sampling={**GREEDY, "max_tokens": 24}) for _ in range(4)]
    served.execute(*asked)
    for each in asked:
        assert each.wait().error is None
    served.finalize()
    counters = served.engine.scheduler.counters
    preempted = value("octavo_preemptions_total", kind="recompute")
    assert preempted == counters.preemptions["recompute"] > 0
    assert value("octavo_preemptions_total", kind="swap") == 0
    recomputed = value("octavo_recomputed_tokens_total", cause="preemption")
    assert recomputed == counters.recomputed_tokens["preemption"] > preempted
    assert value("octavo_kv_block_lifetime_seconds_count") > 0
    assert value("octavo_min_cacheable_prefix_tokens") == 0
    assert value("octavo_generation_tokens_total") == 4 * 24
    assert value("octavo_prompt_tokens_total") == sum(
        len(served.tokenizer.encode("la" * 4)) for _ in asked
    )


def test_metrics_count_what_is_swapped(serve: Serve, random_folder: Path) -> None:
    block_bytes = 4 * 2 * 2 * 2 * 16 * 4
    served = serve(
        random_folder, kv_cache_bytes=12 * block_bytes, max_num_seqs=4, preemption="swap",
        **{"kv_tiers.host_bytes": 2**20},
    )  # fmt: skip
    prompts = ["la" * 4, "lo" * 4, "li" * 4, "al" * 4]
    asked = [request(text, sampling={**GREEDY, "max_tokens": 24}) for text in prompts]
    served.execute(*asked)
    assert all(each.wait().error is None for each in asked)
    wait_until(lambda: served.engine.gauges.num_running == 0)
    served.flush_metrics()
    counters = served.engine.scheduler.counters
    assert value("octavo_preemptions_total", kind="swap") == counters.preemptions["swap"] > 0
    for direction, blocks in (("out", counters.saved_blocks), ("in", counters.loaded_blocks)):
        swapped = value("octavo_kv_swapped_bytes_total", tier="host", direction=direction)
        assert swapped > 0 < blocks
        assert value("octavo_kv_tier_bytes_per_second", tier="host", direction=direction) > 0
    assert value("octavo_kv_tier_lookups_total", tier="host", outcome="hit") > 0
    assert value("octavo_kv_tier_up", tier="host") == 1
    assert 0 < value("octavo_kv_tier_used_bytes", tier="host") <= 2**20
    assert value("octavo_kv_tier_capacity_bytes", tier="host") <= 2**20
    assert value("octavo_kv_block_size_tokens") == 4
    assert value("octavo_kv_block_bytes") == block_bytes
    assert value("octavo_kv_block_layer_bytes") == block_bytes / 2
    assert value("octavo_min_cacheable_prefix_tokens") == 4


def test_metrics_outlive_a_failed_flush(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    families = {each.name: each for each in pb_utils.MetricFamily.created}
    (metric,) = families["octavo_generation_tokens_total"].metrics.values()
    increment = metric.increment
    failures = iter([RuntimeError("no answer")])

    def fail_once(amount: float) -> None:
        for failure in failures:
            raise failure
        increment(amount)

    metric.increment = fail_once
    served.ask("A", sampling={**GREEDY, "max_tokens": 7})
    wait_until(lambda: value("octavo_generation_tokens_total") == 7)
