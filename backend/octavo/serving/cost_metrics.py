"""Cost's part of the metrics: whose the time was, and what it came to at the price."""

from collections.abc import Iterator

from octavo.engine import Engine
from octavo.planner.cost import usd_per_million
from octavo.serving.billing import Billing
from octavo.serving.metric_table import Sample
from octavo.stats import RequestStats

# No tenant's name has parentheses.
ENGINE = "(engine)"


def collect_cost(engine: Engine, requests: RequestStats, billing: Billing) -> Iterator[Sample]:
    """Seconds always; dollars only where a price is set."""
    engine.count_idle()
    idle_s, overhead_s = engine.clock.idle_s, engine.clock.overhead_s
    yield "octavo_idle_seconds_total", "counter", {}, idle_s
    yield "octavo_overhead_seconds_total", "counter", {}, overhead_s
    yield "octavo_request_log_dropped_total", "counter", {}, billing.dropped_lines
    ledger = engine.ledger
    for name, label, parts in (
        ("bytes", "kind", {"weights": ledger.weight_bytes, "kv": ledger.kv_bytes}),
        ("seconds", "resource", {"memory": ledger.memory_s, "compute": ledger.compute_s}),
    ):
        for part, amount in parts.items():
            yield f"octavo_step_{name}_total", "counter", {label: part}, amount
    yield "octavo_step_flops_total", "counter", {}, ledger.flops
    yield "octavo_max_num_requests_running", "gauge", {}, engine.config.max_num_seqs
    tenants = sorted(list(engine.ledger.tenants.items()))
    costs = {(ENGINE, "idle"): idle_s, (ENGINE, "overhead"): overhead_s}
    for tenant, seconds in tenants:
        for phase, phase_s in (("prefill", seconds.prefill_s), ("decode", seconds.decode_s)):
            costs[tenant, phase] = phase_s
            labels = {"tenant": tenant, "phase": phase}
            yield "octavo_attributed_seconds_total", "counter", labels, phase_s
    saved = {tenant: seconds.saved_s for tenant, seconds in tenants}
    held = {ENGINE: engine.held_in_vain_s} | {tenant: s.held_s for tenant, s in tenants}
    yield from _by_tenant("octavo_prefix_cache_saved_seconds_total", saved)
    yield from _by_tenant("octavo_prefix_cache_held_seconds_total", held)
    price = billing.usd_per_hour
    if price is None:
        return
    yield "octavo_price_usd_per_hour", "gauge", {}, price
    if billing.as_of_timestamp_s is not None:
        yield "octavo_price_as_of_timestamp_seconds", "gauge", {}, billing.as_of_timestamp_s
    usd_per_s = billing.usd(1.0)
    assert usd_per_s is not None
    for (tenant, phase), cost_s in costs.items():
        labels = {"tenant": tenant, "phase": phase}
        yield "octavo_cost_usd_total", "counter", labels, cost_s * usd_per_s
    yield from _by_tenant("octavo_prefix_cache_saved_usd_total", saved, usd_per_s)
    yield from _by_tenant("octavo_prefix_cache_held_usd_total", held, usd_per_s)
    bill_usd = sum(costs.values()) * usd_per_s
    for tokens, count in (
        ("output", engine.stats.generation_tokens), ("good", requests.good_tokens),
    ):  # fmt: skip
        if count:
            per_million = usd_per_million(bill_usd, count)
            yield "octavo_cost_per_million_tokens_usd", "gauge", {"tokens": tokens}, per_million


def _by_tenant(name: str, values: dict[str, float], factor: float = 1.0) -> Iterator[Sample]:
    for tenant, value in values.items():
        yield name, "counter", {"tenant": tenant}, value * factor
