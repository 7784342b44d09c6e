"""Every metric that Octavo adds to Triton's: the one list, for the exporter and for the docs.

All carry the labels `model` and `version`; `labels` are those on top.
"""

from dataclasses import dataclass
from typing import Literal


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
        "octavo_recomputed_tokens_total", "counter", "Tokens computed again, by cause", ("cause",)
    ),
    Metric(
        "octavo_prefix_cache_query_tokens_total", "counter",
        "Prompt tokens looked up in the prefix cache",
    ),
    Metric(
        "octavo_prefix_cache_hit_tokens_total", "counter",
        "Prompt tokens found in the prefix cache; a sequence's own recompute counts in neither",
    ),
    Metric(
        "octavo_kv_block_evictions_total", "counter",
        "Cached KV blocks whose content was given up, by cause", ("cause",),
    ),
    Metric(
        "octavo_kv_block_copies_total", "counter",
        "KV blocks copied because a sequence wrote to one that others read",
    ),
    Metric("octavo_num_requests_running", "gauge", "Sequences that hold KV blocks"),
    Metric(
        "octavo_num_requests_waiting", "gauge",
        "Admitted sequences that wait for KV blocks or a place",
    ),
    Metric("octavo_kv_blocks_used", "gauge", "KV blocks in use"),
    Metric(
        "octavo_kv_blocks_cached", "gauge",
        "KV blocks that are free and whose content may be found again",
    ),
    Metric("octavo_kv_blocks_total", "gauge", "KV blocks of the pool"),
    Metric("octavo_kv_cache_usage_ratio", "gauge", "KV blocks in use / KV blocks of the pool"),
    Metric(
        "octavo_kv_fragmentation_ratio", "gauge",
        "Share of the slots of used KV blocks that hold no token",
    ),
    Metric("octavo_engine_up", "gauge", "1 while the decode loop accepts requests, else 0"),
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
