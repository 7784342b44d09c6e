"""One frame of `octavo top`: from an interval of metrics to lines."""

from __future__ import annotations

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from octavo.cli.scrape import Interval
from octavo.planner.cost import usd_per_million
from octavo.planner.live import Limit, Load, histogram_quantile, live_limit

_NONE = "–"
_MAX_TENANTS = 5


def load_of(interval: Interval) -> Load:
    step, attributed = "octavo_step_seconds_total", "octavo_attributed_seconds_total"
    return Load(
        is_up=interval.gauge("octavo_engine_up") > 0,
        running=interval.gauge("octavo_num_requests_running"),
        max_running=interval.gauge("octavo_max_num_requests_running"),
        waiting=interval.gauge("octavo_num_requests_waiting")
        + interval.gauge("nv_inference_pending_request_count"),
        longest_wait_s=interval.gauge("octavo_longest_wait_seconds"),
        kv_usage_ratio=interval.gauge("octavo_kv_cache_usage_ratio"),
        preemptions=interval.increase("octavo_preemptions_total"),
        busy_s=interval.increase("octavo_busy_seconds_total"),
        idle_s=interval.increase("octavo_idle_seconds_total"),
        overhead_s=interval.increase("octavo_overhead_seconds_total"),
        memory_s=interval.increase(step, resource="memory"),
        compute_s=interval.increase(step, resource="compute"),
        prefill_s=interval.increase(attributed, phase="prefill"),
        decode_s=interval.increase(attributed, phase="decode"),
        weight_bytes=interval.increase("octavo_step_bytes_total", kind="weights"),
        kv_bytes=interval.increase("octavo_step_bytes_total", kind="kv"),
    )


def frame(interval: Interval, title: str) -> RenderableType:
    load = load_of(interval)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, line in (
        ("tokens/s", _tokens(interval)),
        ("requests", _requests(interval, load)),
        ("TTFT", _latency(interval, "octavo_time_to_first_token_seconds")),
        ("TPOT", _latency(interval, "octavo_time_per_output_token_seconds")),
        ("queued for", _latency(interval, "octavo_request_queue_time_seconds")),
        ("KV memory", _kv(interval, load)),
        ("pressure", _pressure(interval)),
        ("time", _time(load)),
        ("cost", _cost(interval)),
        ("tenants", _tenants(interval)),
    ):
        table.add_row(name, line)
    table.add_row("limit", _limit(live_limit(load)))
    # Not markup, which takes the brackets of an IPv6 address away.
    return Panel(table, title=Text(title), title_align="left", expand=False)


def _tokens(interval: Interval) -> str:
    output = interval.rate("octavo_generation_tokens_total")
    good = interval.rate("octavo_good_tokens_total")
    prompt = interval.rate("octavo_prompt_tokens_total")
    return f"{output:,.0f} output, {good:,.0f} good of ended requests, {prompt:,.0f} of prompts"


def _requests(interval: Interval, load: Load) -> str:
    ended = interval.rate("octavo_requests_total")
    return (
        f"{load.running:.0f} of {load.max_running:.0f} running, {load.waiting:.0f} waiting, "
        f"{ended:,.2f} ended/s"
    )


def _latency(interval: Interval, name: str) -> str:
    buckets = interval.buckets(name)
    if not buckets or buckets[-1][1] <= 0:
        return _NONE
    p50, p99 = (histogram_quantile(quantile, buckets) for quantile in (0.5, 0.99))
    return f"p50 {_seconds(p50)}, p99 {_seconds(p99)} ({buckets[-1][1]:,.0f} requests)"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{1000 * value:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _kv(interval: Interval, load: Load) -> str:
    filled = round(20 * min(load.kv_usage_ratio, 1.0))
    cached = interval.gauge("octavo_kv_blocks_cached")
    total = max(interval.gauge("octavo_kv_blocks_total"), 1.0)
    bar = "█" * filled + "░" * (20 - filled)
    return f"{bar} {100 * load.kv_usage_ratio:.0f} % used, {100 * cached / total:.0f} % cached"


def _pressure(interval: Interval) -> str:
    asked = interval.increase("octavo_prefix_cache_query_tokens_total")
    found = interval.increase("octavo_prefix_cache_hit_tokens_total")
    hits = f"{100 * found / asked:.0f} %" if asked else _NONE
    return (
        f"{interval.rate('octavo_kv_block_evictions_total'):,.1f} evictions/s, "
        f"{interval.rate('octavo_preemptions_total'):,.2f} preemptions/s, prefix hits {hits}"
    )


def _time(load: Load) -> str:
    if load.total_s <= 0:
        return _NONE
    return ", ".join(
        f"{name} {100 * seconds / load.total_s:.0f} %"
        for name, seconds in (
            ("busy", load.busy_s), ("idle", load.idle_s), ("overhead", load.overhead_s)
        )
    )  # fmt: skip


def _cost(interval: Interval) -> str:
    price = interval.gauge("octavo_price_usd_per_hour")
    if not price:
        return "no price: set price_usd_per_hour in engine.toml"
    spent_usd = interval.increase("octavo_cost_usd_total")
    good = round(interval.increase("octavo_good_tokens_total"))
    now = f"${usd_per_million(spent_usd, good):,.2f}" if good else _NONE
    since = interval.after.value("octavo_cost_per_million_tokens_usd", tokens="good")
    start = _NONE if since is None else f"${since:,.2f}"
    return f"{now} per million good tokens ({start} since the start), ${price:g} per hour"


def _tenants(interval: Interval) -> str:
    """Who caused most of the steps' time, of all that somebody caused."""
    name = "octavo_attributed_seconds_total"
    spent = {
        tenant: interval.increase(name, tenant=tenant)
        for tenant in interval.after.names(name, "tenant")
    }
    total = sum(spent.values())
    if total <= 0:
        return _NONE
    first = sorted(spent, key=lambda tenant: -spent[tenant])[:_MAX_TENANTS]
    return ", ".join(
        f"{tenant or '(none)'} {100 * spent[tenant] / total:.0f} %"
        for tenant in first
        if spent[tenant] > 0
    )


def _limit(limit: Limit) -> Text:
    style = {"down": "bold red", "traffic": "green"}.get(limit.name, "yellow")
    return Text(limit.sentence, style=style)
