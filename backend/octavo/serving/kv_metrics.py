"""KV memory's part of the metrics: the pool, what presses on it, and the tiers behind it."""

from collections.abc import Iterator
from typing import get_args

from octavo.engine import Engine
from octavo.scheduling.block_allocator import EvictionCause
from octavo.scheduling.counters import POOL, RecomputeCause
from octavo.scheduling.sequence import PreemptionKind
from octavo.serving.metric_table import Sample
from octavo.tiers import FaultKind, SkipCause, Tiers


def collect_kv(engine: Engine) -> Iterator[Sample]:
    """Each label's value is there from the start, so that a first event is seen as a rise."""
    counters, allocator = engine.scheduler.counters, engine.scheduler.allocator
    for name, total in (
        ("octavo_prefix_cache_query_tokens_total", counters.prefix_query_tokens),
        ("octavo_kv_block_copies_total", counters.copied_blocks),
    ):
        yield name, "counter", {}, total
    for kind in get_args(PreemptionKind):
        yield "octavo_preemptions_total", "counter", {"kind": kind}, counters.preemptions[kind]
    for cause in get_args(RecomputeCause):
        tokens = counters.recomputed_tokens[cause]
        yield "octavo_recomputed_tokens_total", "counter", {"cause": cause}, tokens
    for cause in get_args(EvictionCause):
        evictions = allocator.evictions[cause]
        yield "octavo_kv_block_evictions_total", "counter", {"cause": cause}, evictions
    for tier in (POOL, *(engine.tiers.names if engine.tiers else ())):
        tokens = counters.prefix_hit_tokens[tier]
        yield "octavo_prefix_cache_hit_tokens_total", "counter", {"tier": tier}, tokens
    yield from _collect_pool(engine)
    if engine.tiers is not None:
        yield from _collect_tiers(engine.tiers)


def _collect_pool(engine: Engine) -> Iterator[Sample]:
    gauges, kv_cache = engine.gauges, engine.runner.kv_cache
    layout = kv_cache.layout
    used, cached, total = gauges.used_blocks, gauges.cached_blocks, gauges.total_blocks
    shares = engine.config.enable_prefix_caching
    for name, value in (
        ("octavo_kv_blocks_used", used),
        ("octavo_kv_blocks_free", total - used - cached),
        ("octavo_kv_blocks_cached", cached),
        ("octavo_kv_blocks_total", total),
        ("octavo_kv_block_size_tokens", kv_cache.block_size),
        ("octavo_kv_block_bytes", kv_cache.block_bytes),
        (
            "octavo_kv_block_layer_bytes",
            max(map(layout.layer_bytes, range(len(layout.formats)))),
        ),
        ("octavo_kv_cache_usage_ratio", used / max(total, 1)),
        ("octavo_kv_fragmentation_ratio", gauges.fragmentation_ratio),
        ("octavo_min_cacheable_prefix_tokens", kv_cache.block_size if shares else 0),
    ):
        yield name, "gauge", {}, value


def _collect_tiers(tiers: Tiers) -> Iterator[Sample]:
    for tier, stats in tiers.stats.items():
        for direction, num_bytes, seconds in (
            ("out", stats.stored_bytes, stats.store_s),
            ("in", stats.fetched_bytes, stats.fetch_s),
        ):
            labels = {"tier": tier, "direction": direction}
            yield "octavo_kv_swapped_bytes_total", "counter", labels, num_bytes
            yield "octavo_kv_swap_seconds_total", "counter", labels, seconds
        for outcome, blocks in (("hit", stats.hits), ("miss", stats.misses)):
            labels = {"tier": tier, "outcome": outcome}
            yield "octavo_kv_tier_lookups_total", "counter", labels, blocks
        yield "octavo_kv_tier_evictions_total", "counter", {"tier": tier}, stats.evicted_blocks
        for cause in get_args(SkipCause):
            labels = {"tier": tier, "cause": cause}
            yield (
                "octavo_kv_tier_skipped_blocks_total", "counter", labels,
                stats.skipped_blocks[cause],
            )  # fmt: skip
        for kind in get_args(FaultKind):
            labels = {"tier": tier, "kind": kind}
            yield "octavo_kv_tier_errors_total", "counter", labels, stats.errors[kind]
    for tier, gauges in tiers.gauges().items():
        for name, value in (
            ("octavo_kv_tier_up", gauges.is_up),
            ("octavo_kv_tier_used_bytes", gauges.used_bytes),
            ("octavo_kv_tier_capacity_bytes", gauges.capacity_bytes),
            ("octavo_kv_tier_queued_bytes", gauges.queued_bytes),
        ):
            yield name, "gauge", {"tier": tier}, value
        for direction, rate in (
            ("out", gauges.write_bytes_per_s), ("in", gauges.read_bytes_per_s)
        ):  # fmt: skip
            labels = {"tier": tier, "direction": direction}
            yield "octavo_kv_tier_bytes_per_second", "gauge", labels, rate
