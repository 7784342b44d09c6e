"""Dollars: per token, per hour, and which contract is the cheaper one.

Formulas are those that OpenCost (docs/inference-cost-tracking.md), inference-perf (docs/metrics.md)
and llm-d (docs/proposals/inference-costs.md) print, where they agree; where they do not, the text
says what is taken.
"""

from __future__ import annotations

MILLION = 1e6
HOUR_S = 3600.0
MONTH_HOURS = 730.0  # a twelfth of 8,760


def seconds_usd(seconds: float, usd_per_hour: float) -> float:
    """Of a machine that is paid for by the clock."""
    return seconds / HOUR_S * usd_per_hour


def usd_per_million(usd: float, tokens: float) -> float:
    """usd that bought `tokens`. Raises ZeroDivisionError for none."""
    return usd / tokens * MILLION


def usd_per_million_good_tokens(good_tokens: float, elapsed_s: float, usd_per_hour: float) -> float:
    """Of a machine that is paid for `elapsed_s` by the clock, idle or not, and gave so many output
    tokens of requests that met their SLO."""
    return usd_per_million(seconds_usd(elapsed_s, usd_per_hour), good_tokens)


def usd_per_million_at(
    usd_per_hour: float, tokens_per_s: float, utilization_ratio: float = 1.0
) -> float:
    """Of a machine that can give `tokens_per_s` and is used for a share of its time: the less it is
    used, the more a token costs."""
    return usd_per_hour / (tokens_per_s * HOUR_S * utilization_ratio) * MILLION


def split_by_time(usd: float, prefill_s: float, decode_s: float) -> tuple[float, float]:
    """A bill's share of input and of output, by the engine's time; idle time goes along with it.
    A decode second that 64 requests share counts once (per-request seconds count it 64 times)."""
    share = prefill_s / (prefill_s + decode_s)
    return usd * share, usd * (1 - share)


def cached_saving_usd(
    hit_tokens: float,
    prefill_usd_per_token: float,
    held_block_hours: float,
    usd_per_block_hour: float,
) -> float:
    """What a prefix cache saved: prefill avoided, less the blocks held for it. Can be negative."""
    return hit_tokens * prefill_usd_per_token - held_block_hours * usd_per_block_hour


def api_usd(
    prompt_tokens: float,
    cached_tokens: float,
    output_tokens: float,
    *,
    input_cost_per_token: float,
    output_cost_per_token: float,
    cache_read_input_token_cost: float | None = None,
) -> float:
    """Of a token-based API. Cached tokens are part of the prompt; without a price of their own they
    cost what others do."""
    cached_usd = (
        input_cost_per_token if cache_read_input_token_cost is None else cache_read_input_token_cost
    )
    fresh = prompt_tokens - cached_tokens
    return (
        fresh * input_cost_per_token
        + cached_tokens * cached_usd
        + output_tokens * output_cost_per_token
    )


def reserved_break_even_ratio(reserved_usd_per_hour: float, on_demand_usd_per_hour: float) -> float:
    """The share of its hours that a reserved machine must be needed for, to cost no more than the
    same hours on demand."""
    return reserved_usd_per_hour / on_demand_usd_per_hour


def spot_effective_usd_per_hour(
    spot_usd_per_hour: float,
    interruptions_per_hour: float,
    *,
    drain_s: float,
    reload_s: float,
    lost_s: float,
) -> float:
    """Per useful hour: time that interruptions take is paid for and serves nothing. Infinite if
    they take all of it."""
    lost_ratio = interruptions_per_hour * (drain_s + reload_s + lost_s) / HOUR_S
    return spot_usd_per_hour / (1 - lost_ratio) if lost_ratio < 1 else float("inf")


def on_premise_usd_per_hour(
    capital_usd: float,
    amortisation_years: float,
    power_kw: float,
    usd_per_kwh: float,
    *,
    pue_ratio: float = 1.0,
    yearly_operation_usd: float = 0.0,
) -> float:
    """Straight-line amortisation, power with the building's share (PUE), and what runs it."""
    hours = 12 * MONTH_HOURS
    capital = capital_usd / (amortisation_years * hours)
    return capital + power_kw * pue_ratio * usd_per_kwh + yearly_operation_usd / hours


def self_host_break_even_tokens(monthly_usd: float, api_usd_per_million: float) -> float:
    """Tokens a month from which own machines of `monthly_usd` cost less than the API."""
    return monthly_usd / api_usd_per_million * MILLION


def newsvendor_quantile(floor_usd_per_hour: float, burst_usd_per_hour: float) -> float:
    """Of demand: the floor to commit to is where demand exceeds it with probability
    floor / burst price. An hour of floor is paid always, one of burst only if it is needed.

    0 if the floor costs as much as bursting: then commit to nothing.
    """
    return max(0.0, 1 - floor_usd_per_hour / burst_usd_per_hour)
