"""Who wants KV memory, who gives way, and what sharing saves."""

from __future__ import annotations

from monitoring.grafana.panels import Dashboard, Panel, Query, gauge, quantile, rate

_QUERIES = "octavo_prefix_cache_query_tokens_total"

USED_NOW = Panel(
    id=6,
    title="KV memory used",
    about="Blocks in use / blocks of the pool, of the fullest engine.",
    queries=(Query(f"max({gauge('octavo_kv_cache_usage_ratio')})", "used"),),
    unit="percentunit",
    kind="stat",
    thresholds=(("green", None), ("yellow", 0.9), ("red", 0.95)),
)
USAGE = Panel(
    id=19,
    title="Usage and fragmentation",
    about="Used: blocks in use / blocks of the pool. Fragmentation: share of the slots of "
    "used blocks that hold no token.",
    queries=(
        Query(gauge("octavo_kv_cache_usage_ratio"), "used, {{instance}}"),
        Query(gauge("octavo_kv_fragmentation_ratio"), "fragmentation, {{instance}}"),
    ),
    unit="percentunit",
    maximum=1,
)
PREEMPTIONS = Panel(
    id=20,
    title="Preemptions",
    about="Sequences that gave up their blocks, by how they come back.",
    queries=(Query(rate("octavo_preemptions_total", "kind"), "{{kind}}"),),
    unit="suffix:/s",
)
PREFIX_HITS = Panel(
    id=22,
    title="Prefix cache hits",
    about="Share of the prompt tokens looked up that the prefix cache had, by where; a "
    "sequence's own recompute counts in neither.",
    queries=(
        Query(
            f"{rate('octavo_prefix_cache_hit_tokens_total', 'tier')} / ignoring(tier) "
            f"group_left {rate('octavo_prefix_cache_query_tokens_total')}",
            "{{tier}}",
        ),
    ),
    unit="percentunit",
    maximum=1,
)

KV_PRESSURE = Dashboard(
    uid="octavo-kv",
    title="Octavo: KV pressure",
    rows={
        "Now": (
            USED_NOW,
            Panel(
                id=48,
                title="Waiting",
                about="Admitted sequences that wait for KV blocks or a place.",
                queries=(Query(f"sum({gauge('octavo_num_requests_waiting')})", "waiting"),),
                kind="stat",
            ),
            Panel(
                id=49,
                title="Longest wait",
                about="Since arrival or preemption, of those who wait now.",
                queries=(Query(f"max({gauge('octavo_longest_wait_seconds')})", "wait"),),
                unit="s",
                kind="stat",
            ),
            Panel(
                id=50,
                title="Preemptions",
                about="Sequences a second that gave up their blocks. OctavoPreemptions fires above "
                "1.",
                queries=(Query(rate("octavo_preemptions_total"), "preempted"),),
                unit="suffix:/s",
                kind="stat",
                thresholds=(("green", None), ("red", 1)),
            ),
            Panel(
                id=51,
                title="Prefix cache hits",
                about="Share of the prompt tokens looked up that the pool or a tier had.",
                queries=(
                    Query(
                        f"{rate('octavo_prefix_cache_hit_tokens_total')} / ({rate(_QUERIES)} > 0)",
                        "hits",
                    ),
                ),
                unit="percentunit",
                kind="stat",
            ),
            Panel(
                id=52,
                title="Evicted and computed again",
                about="Share of the prompt tokens looked up that the prefix cache had not long "
                "ago. OctavoEvictions fires above a tenth.",
                queries=(
                    Query(
                        rate("octavo_recomputed_tokens_total", where=',cause="eviction"')
                        + f" / ({rate(_QUERIES)} > 0)",
                        "again",
                    ),
                ),
                unit="percentunit",
                kind="stat",
                thresholds=(("green", None), ("red", 0.1)),
            ),
        ),
        "Blocks": (
            Panel(
                id=53,
                title="Blocks",
                about="Used: by sequences. Cached: by nobody, and may be found again. Free: empty.",
                queries=tuple(
                    Query(f"sum({gauge(f'octavo_kv_blocks_{state}')})", state)
                    for state in ("used", "cached", "free")
                ),
                stacked=True,
            ),
            USAGE,
            Panel(
                id=54,
                title="Sequences",
                about="Running: hold KV blocks; at most max_num_seqs. Waiting: admitted.",
                queries=(
                    Query(f"sum({gauge('octavo_num_requests_running')})", "running"),
                    Query(f"sum({gauge('octavo_max_num_requests_running')})", "may run"),
                    Query(f"sum({gauge('octavo_num_requests_waiting')})", "waiting"),
                ),
            ),
        ),
        "Pressure": (
            PREEMPTIONS,
            Panel(
                id=21,
                title="Recomputed tokens",
                about="The price of preemption: tokens computed again, by cause.",
                queries=(Query(rate("octavo_recomputed_tokens_total", "cause"), "{{cause}}"),),
                unit="suffix: tokens/s",
            ),
            Panel(
                id=25,
                title="Longest wait",
                about="Of the sequences that wait now, the longest since arrival or preemption.",
                queries=(Query(gauge("octavo_longest_wait_seconds"), "{{instance}}"),),
                unit="s",
            ),
        ),
        "Prefix cache": (
            PREFIX_HITS,
            Panel(
                id=23,
                title="Cached blocks, evictions and copies",
                about="Cached: blocks that nobody uses and whose content may be found again. "
                "Evicted: given to others, by what for. Copied: written to while others read them.",
                queries=(
                    Query(f"sum({gauge('octavo_kv_blocks_cached')})", "cached"),
                    Query(rate("octavo_kv_block_evictions_total", "cause"), "evicted/s, {{cause}}"),
                    Query(rate("octavo_kv_block_copies_total"), "copied/s"),
                ),
            ),
            Panel(
                id=26,
                title="Age of blocks",
                about="Median time from a block's being taken to its content being given up, and "
                "from its last user to its eviction. Evicted soon after use: the pool is small for "
                "the prefix cache.",
                queries=(
                    Query(quantile(0.5, "octavo_kv_block_lifetime_seconds"), "lifetime"),
                    Query(
                        quantile(0.5, "octavo_kv_block_idle_before_eviction_seconds"),
                        "idle before eviction",
                    ),
                ),
                unit="s",
            ),
        ),
        "Tiers": (
            Panel(
                id=27,
                title="Swapped bytes",
                about="KV blocks moved out to the tiers and in from them.",
                queries=(
                    Query(
                        rate("octavo_kv_swapped_bytes_total", "tier, direction"),
                        "{{tier}}, {{direction}}",
                    ),
                ),
                unit="Bps",
            ),
            Panel(
                id=28,
                title="Tiers",
                about="Share of each tier's bytes in use, and faults per second. Empty without "
                "tiers.",
                queries=(
                    Query(
                        f"sum by (tier) ({gauge('octavo_kv_tier_used_bytes')}) / "
                        f"sum by (tier) ({gauge('octavo_kv_tier_capacity_bytes')})",
                        "used, {{tier}}",
                    ),
                    Query(rate("octavo_kv_tier_errors_total", "tier"), "faults/s, {{tier}}"),
                ),
            ),
            Panel(
                id=55,
                title="Lookups in tiers",
                about="KV blocks a second that a tier was asked for. Empty without tiers.",
                queries=(
                    Query(
                        rate("octavo_kv_tier_lookups_total", "tier, outcome"),
                        "{{tier}}, {{outcome}}",
                    ),
                ),
                unit="suffix: blocks/s",
            ),
        ),
    },
)
