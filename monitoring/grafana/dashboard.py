"""Writes dashboards/octavo.json from the panels below: `python monitoring/grafana/dashboard.py`.

Ids of panels stay as they are, since links and alerts name them; a new panel gets the next one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).parent / "dashboards" / "octavo.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}

_COLUMNS = 24
_HEIGHTS = {"stat": 4, "timeseries": 8}
_CHOSEN = 'model=~"$model",instance=~"$instance"'
# Requests of the unary model run in the same engine, and wait in a queue of its own.
_CHOSEN_QUEUES = 'model=~"($model)(_unary)?",instance=~"$instance"'
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    id: int
    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"  # a unit id of Grafana's
    kind: Literal["stat", "timeseries"] = "timeseries"
    stacked: bool = False
    maximum: float | None = None
    thresholds: tuple[tuple[str, float | None], ...] = field(default=(("green", None),))


def gauge(name: str) -> str:
    return f"{name}{{{_CHOSEN}}}"


def rate(name: str, by: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({name}{{{_CHOSEN}}}[$__rate_interval]))"


def quantile(q: float, name: str) -> str:
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', 'le')})"


def quantiles(name: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, name), f"p{100 * q:g}") for q in _QUANTILES)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel(
            id=1,
            title="Engine",
            about="1 while every engine's loop accepts requests.",
            queries=(Query(f"min({gauge('octavo_engine_up')})", "up"),),
            kind="stat",
            thresholds=(("red", None), ("green", 1)),
        ),
        Panel(
            id=2,
            title="Goodput",
            about="Requests per second that met every SLO.",
            queries=(Query(rate("octavo_good_requests_total"), "good"),),
            unit="reqps",
            kind="stat",
        ),
        Panel(
            id=3,
            title="Good share",
            about="Of the requests that ended, those that met every SLO.",
            queries=(
                Query(
                    f"{rate('octavo_good_requests_total')} / ({rate('octavo_requests_total')} > 0)",
                    "good",
                ),
            ),
            unit="percentunit",
            kind="stat",
            thresholds=(("red", None), ("yellow", 0.9), ("green", 0.99)),
        ),
        Panel(
            id=4,
            title="TTFT p99",
            about="Received to first non-empty text, server side. Its SLO is 2 s.",
            queries=(Query(quantile(0.99, "octavo_time_to_first_token_seconds"), "p99"),),
            unit="s",
            kind="stat",
            thresholds=(("green", None), ("red", 2)),
        ),
        Panel(
            id=5,
            title="TPOT p99",
            about="(End to end - TTFT) / (output tokens - 1). Its SLO is 100 ms.",
            queries=(Query(quantile(0.99, "octavo_time_per_output_token_seconds"), "p99"),),
            unit="s",
            kind="stat",
            thresholds=(("green", None), ("red", 0.1)),
        ),
        Panel(
            id=6,
            title="KV memory used",
            about="Blocks in use / blocks of the pool, of the fullest engine.",
            queries=(Query(f"max({gauge('octavo_kv_cache_usage_ratio')})", "used"),),
            unit="percentunit",
            kind="stat",
            thresholds=(("green", None), ("yellow", 0.9), ("red", 0.95)),
        ),
    ),
    "Requests": (
        Panel(
            id=7,
            title="Requests by finish reason",
            about="Ended requests; invalid ones were refused for their arguments.",
            queries=(
                Query(rate("octavo_requests_total", "finish_reason"), "{{finish_reason}}"),
                Query(rate("octavo_invalid_requests_total"), "invalid"),
            ),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            id=8,
            title="Goodput",
            about="Requests that met every SLO, beside all that ended.",
            queries=(
                Query(rate("octavo_good_requests_total"), "good"),
                Query(rate("octavo_requests_total"), "all"),
            ),
            unit="reqps",
        ),
        Panel(
            id=9,
            title="Failures in Triton's queue",
            about="REJECTED: timed out in the queue. Refusals by a full queue are counted nowhere; "
            "they begin when the queue (panel Sequences and queue) reaches its bound.",
            queries=(Query(rate("nv_inference_request_failure", "reason"), "{{reason}}"),),
            unit="reqps",
        ),
    ),
    "Latency, server side": (
        Panel(
            id=10,
            title="TTFT",
            about="Received to first non-empty text.",
            queries=quantiles("octavo_time_to_first_token_seconds"),
            unit="s",
        ),
        Panel(
            id=11,
            title="TPOT",
            about="(End to end - TTFT) / (output tokens - 1), one per request.",
            queries=quantiles("octavo_time_per_output_token_seconds"),
            unit="s",
        ),
        Panel(
            id=12,
            title="ITL",
            about="Each gap between consecutive outputs of a request, pooled.",
            queries=quantiles("octavo_inter_token_latency_seconds"),
            unit="s",
        ),
    ),
    "Whole requests": (
        Panel(
            id=13,
            title="End to end",
            about="Received to final response.",
            queries=quantiles("octavo_e2e_request_latency_seconds"),
            unit="s",
        ),
        Panel(
            id=14,
            title="Queue time in the engine",
            about="Received to first computed step. Time in Triton's queue comes before it.",
            queries=quantiles("octavo_request_queue_time_seconds"),
            unit="s",
        ),
        Panel(
            id=15,
            title="Sequences and queue",
            about="Running: hold KV blocks. Waiting: admitted. Queued: in Triton's own queue, "
            "which refuses beyond max_queue_size for each priority.",
            queries=(
                Query(f"sum({gauge('octavo_num_requests_running')})", "running"),
                Query(f"sum({gauge('octavo_num_requests_waiting')})", "waiting"),
                Query(f"sum(nv_inference_pending_request_count{{{_CHOSEN_QUEUES}}})", "queued"),
            ),
        ),
    ),
    "Work": (
        Panel(
            id=16,
            title="Tokens",
            about="In: of prompts that began to run. Out: output tokens; good: of requests that "
            "met every SLO.",
            queries=(
                Query(rate("octavo_prompt_tokens_total"), "in"),
                Query(rate("octavo_generation_tokens_total"), "out"),
                Query(rate("octavo_good_tokens_total"), "good"),
            ),
            unit="suffix: tokens/s",
        ),
        Panel(
            id=17,
            title="Busy share by phase",
            about="Share of the time in steps, by what they computed; the rest is idle.",
            queries=(Query(rate("octavo_busy_seconds_total", "phase"), "{{phase}}"),),
            unit="percentunit",
            stacked=True,
        ),
        Panel(
            id=18,
            title="Steps and chunks",
            about="Steps of the decode loop, and chunks of prompts computed in them.",
            queries=(
                Query(rate("octavo_steps_total"), "steps"),
                Query(rate("octavo_prefill_chunks_total"), "prefill chunks"),
            ),
            unit="suffix:/s",
        ),
    ),
    "KV memory": (
        Panel(
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
        ),
        Panel(
            id=20,
            title="Preemptions",
            about="Sequences that gave up their blocks, by how they come back.",
            queries=(Query(rate("octavo_preemptions_total", "kind"), "{{kind}}"),),
            unit="suffix:/s",
        ),
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
        Panel(
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
        ),
        Panel(
            id=23,
            title="Cached blocks, evictions and copies",
            about="Cached: blocks that nobody uses and whose content may be found again. Evicted: "
            "given to others, by what for. Copied: written to while others read them.",
            queries=(
                Query(f"sum({gauge('octavo_kv_blocks_cached')})", "cached"),
                Query(rate("octavo_kv_block_evictions_total", "cause"), "evicted/s, {{cause}}"),
                Query(rate("octavo_kv_block_copies_total"), "copied/s"),
            ),
        ),
        Panel(
            id=26,
            title="Age of blocks",
            about="Median time from a block's being taken to its content being given up, and from "
            "its last user to its eviction. Evicted soon after use: the pool is small for the "
            "prefix cache.",
            queries=(
                Query(quantile(0.5, "octavo_kv_block_lifetime_seconds"), "lifetime"),
                Query(
                    quantile(0.5, "octavo_kv_block_idle_before_eviction_seconds"),
                    "idle before eviction",
                ),
            ),
            unit="s",
        ),
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
            about="Share of each tier's bytes in use, and faults per second. Empty without tiers.",
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
            id=24,
            title="Tokens by tenant",
            about="Prompt and output tokens of ended requests. The first 32 tenants have a series "
            "of their own.",
            queries=(
                Query(rate("octavo_tenant_prompt_tokens_total", "tenant"), "in, {{tenant}}"),
                Query(rate("octavo_tenant_generation_tokens_total", "tenant"), "out, {{tenant}}"),
            ),
            unit="suffix: tokens/s",
        ),
    ),
    "Quality": (
        Panel(
            id=29,
            title="Quality gate",
            about="Servers by what they serve and how it came past the gate: with evidence that "
            "holds (pass), without (warn), not looked at (off), not quantized.",
            queries=(
                Query(
                    f"sum by (gate, weights, kv) ({gauge('octavo_quality_gate')})",
                    "{{gate}}: weights {{weights}}, KV {{kv}}",
                ),
            ),
        ),
        Panel(
            id=30,
            title="Perplexity lost",
            about="To the baseline, as octavo gate measured it, its upper bound (95 %), and the "
            "margin. Empty where nothing is quantized, or without evidence.",
            queries=(
                Query(gauge("octavo_quality_perplexity_loss_ratio"), "lost, {{instance}}"),
                Query(gauge("octavo_quality_perplexity_loss_upper_ratio"), "at most, {{instance}}"),
                Query(gauge("octavo_quality_margin_ratio"), "margin, {{instance}}"),
            ),
            unit="percentunit",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row_number, (title, row) in enumerate(ROWS.items()):
        panels.append(
            {
                "id": 1000 + row_number,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        top += 1
        width = _COLUMNS // len(row)
        for i, panel in enumerate(row):
            place = {"x": i * width, "y": top, "w": width, "h": _HEIGHTS[panel.kind]}
            panels.append(_panel(panel, place))
        top += max(_HEIGHTS[panel.kind] for panel in row)
    return {
        "uid": "octavo",
        "title": "Octavo",
        "tags": ["octavo", "llm", "triton"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_variable("model"), _variable("instance")]},
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": value} for color, value in panel.thresholds],
        },
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    return {
        "id": panel.id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for i, query in enumerate(panel.queries)
        ],
    }


def _variable(label: str) -> dict[str, Any]:
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values(octavo_engine_up, {label})",
        "refresh": 2,  # when the time range changes
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
