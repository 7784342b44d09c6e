"""The first page: is it up, is it good, is it fast, what does it do."""

from __future__ import annotations

from monitoring.grafana.cost import PER_MILLION, PER_MILLION_NOW
from monitoring.grafana.kv_pressure import PREEMPTIONS, PREFIX_HITS, USAGE, USED_NOW
from monitoring.grafana.panels import (
    CHOSEN_QUEUES,
    Dashboard,
    Panel,
    Query,
    gauge,
    quantile,
    quantiles,
    rate,
    recorded,
)

_MISSED = "model:octavo_slo_missed_requests:ratio_rate"
_BUDGET = 0.01  # alerts.yml: 99 % of the requests are to meet each SLO

OVERVIEW = Dashboard(
    uid="octavo",
    title="Octavo",
    rows={
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
                        f"{rate('octavo_good_requests_total')} / "
                        f"({rate('octavo_requests_total')} > 0)",
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
                id=56,
                title="Budget burn, 1 h",
                about="Times as fast as 99 % allows, the worse of TTFT and TPOT: alerts fire at 6 "
                "and at 14.4. Of all the model's servers.",
                queries=(Query(f"max({recorded(f'{_MISSED}1h')}) / {_BUDGET}", "burn"),),
                unit="suffix:x",
                kind="stat",
                thresholds=(("green", None), ("yellow", 6), ("red", 14.4)),
            ),
            USED_NOW,
            PER_MILLION_NOW,
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
                about="REJECTED: timed out in the queue. Refusals by a full queue are counted "
                "nowhere; they begin when the queue (panel Sequences and queue) reaches its bound.",
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
                    Query(f"sum(nv_inference_pending_request_count{{{CHOSEN_QUEUES}}})", "queued"),
                ),
            ),
        ),
        "Work": (
            Panel(
                id=16,
                title="Tokens",
                about="In: of prompts that began to run. Out: output tokens; good: of requests "
                "that met every SLO.",
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
        "KV memory": (USAGE, PREEMPTIONS, PREFIX_HITS),
        "Budget, cost and tenants": (
            Panel(
                id=57,
                title="Burn of the error budget",
                about="Share of the requests that missed an SLO / the 1 % that may, over a short "
                "and a long window. Of all the model's servers.",
                queries=tuple(
                    Query(f"{recorded(_MISSED + window)} / {_BUDGET}", f"{{{{slo}}}}, {window}")
                    for window in ("5m", "1h", "6h")
                ),
                unit="suffix:x",
            ),
            PER_MILLION,
            Panel(
                id=24,
                title="Tokens by tenant",
                about="Prompt and output tokens of ended requests. The first 32 tenants have a "
                "series of their own.",
                queries=(
                    Query(rate("octavo_tenant_prompt_tokens_total", "tenant"), "in, {{tenant}}"),
                    Query(
                        rate("octavo_tenant_generation_tokens_total", "tenant"), "out, {{tenant}}"
                    ),
                ),
                unit="suffix: tokens/s",
            ),
        ),
        "Quality": (
            Panel(
                id=29,
                title="Quality gate",
                about="Servers by what they serve and how it came past the gate: with evidence "
                "that holds (pass), without (warn), not looked at (off), not quantized.",
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
                about="To the baseline, as octavo gate measured it, its upper bound (95 %), and "
                "the margin. Empty where nothing is quantized, or without evidence.",
                queries=(
                    Query(gauge("octavo_quality_perplexity_loss_ratio"), "lost, {{instance}}"),
                    Query(
                        gauge("octavo_quality_perplexity_loss_upper_ratio"), "at most, {{instance}}"
                    ),
                    Query(gauge("octavo_quality_margin_ratio"), "margin, {{instance}}"),
                ),
                unit="percentunit",
            ),
        ),
    },
)
