"""Every metric that Octavo adds to Triton's: the one list, for the exporter and for the docs.

All carry the labels `model` and `version`; `labels` are those on top.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]
Sample = tuple[str, Kind, dict[str, str], float]  # name, kind, labels, present value


@dataclass(frozen=True, slots=True)
class Metric:
    """A histogram is exported as counters, NAME_bucket{le}, NAME_sum and NAME_count."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric(
        "octavo_requests_total", "counter", "Requests that have ended, by finish reason",
        ("finish_reason",),
    ),
    Metric(
        "octavo_invalid_requests_total", "counter", "Requests answered with an argument error"
    ),
    Metric(
        "octavo_slo_requests_total", "counter",
        "Requests that ended without an error, by SLO (ttft; tpot, of two tokens or more) and "
        "outcome: met or missed",
        ("slo", "outcome"),
    ),
    Metric("octavo_good_requests_total", "counter", "Requests that met every SLO"),
    Metric(
        "octavo_good_tokens_total", "counter", "Output tokens of requests that met every SLO"
    ),
    Metric(
        "octavo_prompt_tokens_total", "counter", "Prompt tokens of requests that began to run"
    ),
    Metric("octavo_generation_tokens_total", "counter", "Output tokens"),
    Metric(
        "octavo_tenant_prompt_tokens_total", "counter",
        "Prompt tokens of ended requests, by tenant", ("tenant",),
    ),
    Metric(
        "octavo_tenant_generation_tokens_total", "counter",
        "Output tokens of ended requests, by tenant", ("tenant",),
    ),
    Metric("octavo_steps_total", "counter", "Steps of the decode loop"),
    Metric(
        "octavo_busy_seconds_total", "counter", "Time in steps, by what they computed", ("phase",)
    ),
    Metric("octavo_prefill_chunks_total", "counter", "Chunks of prompts computed"),
    Metric(
        "octavo_preemptions_total", "counter", "Sequences preempted, by how they come back",
        ("kind",),
    ),
    Metric(
        "octavo_recomputed_tokens_total", "counter",
        "Tokens computed again: of preempted sequences (preemption), of prompts that the prefix "
        "cache had not long ago (eviction), of what a tier was known to hold and did not give "
        "(tier_loss)",
        ("cause",),
    ),
    Metric(
        "octavo_prefix_cache_query_tokens_total", "counter",
        "Prompt tokens looked up in the prefix cache",
    ),
    Metric(
        "octavo_prefix_cache_hit_tokens_total", "counter",
        "Prompt tokens found in the prefix cache, by where: the pool or a tier; a sequence's own "
        "recompute counts neither here nor among the queries",
        ("tier",),
    ),
    Metric(
        "octavo_min_cacheable_prefix_tokens", "gauge",
        "The shortest beginning that prompts can share: one block; 0 without the prefix cache",
    ),
    Metric(
        "octavo_kv_block_evictions_total", "counter",
        "Cached KV blocks given to others, by what for: the admission of a sequence, a decode's "
        "next block, or the copy of a shared block",
        ("cause",),
    ),
    Metric(
        "octavo_kv_block_copies_total", "counter",
        "KV blocks copied because a sequence wrote to one that others read",
    ),
    Metric(
        "octavo_kv_swapped_bytes_total", "counter",
        "Bytes of KV blocks moved out to a tier, and in from it", ("tier", "direction"),
    ),
    Metric(
        "octavo_kv_swap_seconds_total", "counter", "Time that a tier took to move them",
        ("tier", "direction"),
    ),
    Metric(
        "octavo_kv_tier_lookups_total", "counter",
        "KV blocks that a tier was asked for, by outcome: hit or miss", ("tier", "outcome"),
    ),
    Metric(
        "octavo_kv_tier_evictions_total", "counter",
        "KV blocks that left a tier for others; those of one above another move down", ("tier",),
    ),
    Metric(
        "octavo_kv_tier_skipped_blocks_total", "counter",
        "KV blocks that a tier did not store, by cause", ("tier", "cause"),
    ),
    Metric(
        "octavo_kv_tier_errors_total", "counter",
        "Faults of a tier, by kind; each costs time, never a request", ("tier", "kind"),
    ),
    Metric("octavo_num_requests_running", "gauge", "Sequences that hold KV blocks"),
    Metric("octavo_max_num_requests_running", "gauge", "max_num_seqs: as many may run"),
    Metric(
        "octavo_num_requests_waiting", "gauge",
        "Admitted sequences that wait for KV blocks or a place",
    ),
    Metric(
        "octavo_longest_wait_seconds", "gauge",
        "How long the sequence has waited that waits longest now, since its arrival or preemption",
    ),
    Metric("octavo_kv_blocks_used", "gauge", "KV blocks in use"),
    Metric("octavo_kv_blocks_free", "gauge", "KV blocks that are free and hold nothing of use"),
    Metric(
        "octavo_kv_blocks_cached", "gauge",
        "KV blocks that are free and whose content may be found again",
    ),
    Metric("octavo_kv_blocks_total", "gauge", "KV blocks of the pool"),
    Metric("octavo_kv_block_size_tokens", "gauge", "Tokens of a KV block"),
    Metric("octavo_kv_block_bytes", "gauge", "Bytes of a KV block, all layers"),
    Metric(
        "octavo_kv_block_layer_bytes", "gauge",
        "Bytes of a KV block in one layer, keys and values; the largest, where formats differ",
    ),
    Metric("octavo_kv_cache_usage_ratio", "gauge", "KV blocks in use / KV blocks of the pool"),
    Metric(
        "octavo_kv_fragmentation_ratio", "gauge",
        "Share of the slots of used KV blocks that hold no token",
    ),
    Metric(
        "octavo_kv_tier_up", "gauge", "1 while a tier can be read and written, else 0", ("tier",)
    ),
    Metric("octavo_kv_tier_used_bytes", "gauge", "Bytes in a tier", ("tier",)),
    Metric("octavo_kv_tier_capacity_bytes", "gauge", "Bytes that a tier may hold", ("tier",)),
    Metric("octavo_kv_tier_queued_bytes", "gauge", "Bytes on their way into a tier", ("tier",)),
    Metric(
        "octavo_kv_tier_bytes_per_second", "gauge",
        "How fast a tier moves KV blocks: a moving average of its transfers",
        ("tier", "direction"),
    ),
    Metric(
        "octavo_idle_seconds_total", "counter",
        "Time in which the decode loop had nothing to compute; with busy and overhead it is the "
        "wall clock",
    ),
    Metric(
        "octavo_overhead_seconds_total", "counter",
        "Time of the decode loop between steps: requests taken in, tokens handed out",
    ),
    Metric(
        "octavo_step_bytes_total", "counter",
        "Bytes that steps had to move: weights once a step, keys and values read and written",
        ("kind",),
    ),
    Metric("octavo_step_flops_total", "counter", "FLOPs that steps had to do"),
    Metric(
        "octavo_step_seconds_total", "counter",
        "Time in steps by what it went for, memory or compute, at the rates learned from steps",
        ("resource",),
    ),
    Metric(
        "octavo_attributed_seconds_total", "counter",
        "Time in steps, shared out to who caused it, by tenant", ("tenant", "phase"),
    ),
    Metric(
        "octavo_prefix_cache_saved_seconds_total", "counter",
        "Prefill time that cached tokens have spared, at the measured rate, by tenant",
        ("tenant",),
    ),
    Metric(
        "octavo_prefix_cache_held_seconds_total", "counter",
        "What it took to keep cached KV blocks that nobody used: their share of the memory times "
        "how long; by the tenant that found them, (engine) for those that were evicted",
        ("tenant",),
    ),
    Metric(
        "octavo_cost_usd_total", "counter",
        "Wall clock times price: shares of tenants in prefill and decode, and idle and overhead "
        "of the tenant (engine); with price_usd_per_hour only",
        ("tenant", "phase"),
    ),
    Metric(
        "octavo_prefix_cache_saved_usd_total", "counter",
        "What cached tokens have saved, less octavo_prefix_cache_held_usd_total is the net; with "
        "price_usd_per_hour only",
        ("tenant",),
    ),
    Metric(
        "octavo_prefix_cache_held_usd_total", "counter",
        "What it cost to keep cached KV blocks; with price_usd_per_hour only", ("tenant",),
    ),
    Metric(
        "octavo_cost_per_million_tokens_usd", "gauge",
        "The whole bill since the start for each million of output tokens, or of good ones; with "
        "price_usd_per_hour only",
        ("tokens",),
    ),
    Metric("octavo_price_usd_per_hour", "gauge", "price_usd_per_hour of engine.toml, if set"),
    Metric(
        "octavo_price_as_of_timestamp_seconds", "gauge",
        "Midnight (UTC) of price_as_of of engine.toml, if set",
    ),
    Metric(
        "octavo_request_log_dropped_total", "counter",
        "Lines that the request log could not take: the disk is slow, full or gone",
    ),
    Metric("octavo_engine_up", "gauge", "1 while the decode loop accepts requests, else 0"),
    Metric(
        "octavo_engine_info", "gauge", "1, for what runs: Octavo's version, the folder's name",
        ("engine_version", "checkpoint", "device"),
    ),
    Metric(
        "octavo_engine_start_timestamp_seconds", "gauge",
        "When the engine had loaded its model, Unix time",
    ),
    Metric(
        "octavo_quality_gate", "gauge",
        "1, for what is served and how it came past the quality gate: pass, warn (no evidence that "
        "holds), off (not looked at) or unquantized",
        ("gate", "weights", "activations", "lm_head", "kv"),
    ),
    Metric(
        "octavo_quality_margin_ratio", "gauge", "Perplexity that a quantized form may lose"
    ),
    Metric(
        "octavo_quality_perplexity_loss_ratio", "gauge",
        "Perplexity that the served form has lost to its baseline, as `octavo gate` measured it; "
        "this and the following are absent without evidence of these very files",
    ),
    Metric(
        "octavo_quality_perplexity_loss_lower_ratio", "gauge",
        "Lower bound of it, 95 %, one-sided",
    ),
    Metric(
        "octavo_quality_perplexity_loss_upper_ratio", "gauge",
        "Upper bound of it, 95 %, one-sided: at most the margin where the gate is passed",
    ),
    Metric(
        "octavo_quality_mean_kl_nats", "gauge",
        "Mean KL divergence of the served form's next token from its baseline's",
    ),
    Metric(
        "octavo_quality_top1_agreement_ratio", "gauge",
        "How often both find the same token most likely",
    ),
    Metric(
        "octavo_quality_context_tokens", "gauge", "The longest context that was measured"
    ),
    Metric(
        "octavo_quality_measured_timestamp_seconds", "gauge", "When that was, Unix time"
    ),
    Metric(
        "octavo_kv_block_lifetime_seconds", "histogram",
        "A KV block's time from being taken to its content being given up; one block in 16",
    ),
    Metric(
        "octavo_kv_block_idle_before_eviction_seconds", "histogram",
        "A KV block's time from its last user to its eviction; one block in 16",
    ),
    Metric("octavo_request_queue_time_seconds", "histogram", "Received to first computed step"),
    Metric("octavo_time_to_first_token_seconds", "histogram", "Received to first non-empty text"),
    Metric(
        "octavo_inter_token_latency_seconds", "histogram",
        "Gaps between consecutive outputs of a request",
    ),
    Metric(
        "octavo_time_per_output_token_seconds", "histogram",
        "(End to end - TTFT) / (output tokens - 1)",
    ),
    Metric("octavo_e2e_request_latency_seconds", "histogram", "Received to final response"),
)  # fmt: skip
