"""What tokens cost, whose the bill is, and what moved it."""

from __future__ import annotations

from monitoring.grafana.panels import Dashboard, Panel, Query, gauge, rate, recorded, share

_GOOD = "model:octavo_usd_per_million_good_tokens:ratio_rate"
_BILL = "octavo_cost_usd_total"
_USD = "currencyUSD"
_PRICE_MAX_AGE_S = 90 * 86400  # OctavoPriceStale


def _per_million(tokens: str, by: str = "") -> str:
    return f"1e6 * {rate(_BILL, by)} / ({rate(tokens, by)} > 0)"


def _stat_per_million(number: int, window: str, words: str) -> Panel:
    return Panel(
        id=number,
        title=f"$ per million good tokens, {words}",
        about="The bill / output tokens of requests that met every SLO, of all the model's "
        "servers.",
        queries=(Query(recorded(_GOOD + window), "{{model}}"),),
        unit=_USD,
        kind="stat",
    )


PER_MILLION_NOW = _stat_per_million(33, "5m", "5 min")
PER_MILLION = Panel(
    id=37,
    title="Dollars per million good tokens",
    about="Over 5 minutes, an hour and a day: the bill, idle time included, / output tokens of "
    "requests that met every SLO. Of all the model's servers.",
    queries=tuple(
        Query(recorded(_GOOD + window), f"{window}, {{{{model}}}}") for window in ("5m", "1h", "1d")
    ),
    unit=_USD,
)

COST = Dashboard(
    uid="octavo-cost",
    title="Octavo: cost",
    span="24h",
    rows={
        "Now": (
            Panel(
                id=31,
                title="Price",
                about="price_usd_per_hour of engine.toml, the highest of the servers.",
                queries=(Query(f"max({gauge('octavo_price_usd_per_hour')})", "$/h"),),
                unit=_USD,
                kind="stat",
            ),
            Panel(
                id=32,
                title="Age of the price",
                about="Since price_as_of, the oldest of the servers. Red after 90 days.",
                queries=(
                    Query(f"time() - min({gauge('octavo_price_as_of_timestamp_seconds')})", "age"),
                ),
                unit="s",
                kind="stat",
                thresholds=(("green", None), ("red", _PRICE_MAX_AGE_S)),
            ),
            Panel(
                id=36,
                title="Bill per hour",
                about="Price x servers: what the chosen servers cost, busy or not.",
                queries=(Query(f"3600 * {rate(_BILL)}", "$/h"),),
                unit=_USD,
                kind="stat",
            ),
            PER_MILLION_NOW,
            _stat_per_million(34, "1h", "1 h"),
            _stat_per_million(35, "1d", "1 d"),
        ),
        "Dollars per million tokens": (
            PER_MILLION,
            Panel(
                id=38,
                title="Beside a week ago",
                about="An hour's dollars per million good tokens, and those of the same hour a "
                "week before. OctavoCostUp fires 25 % above.",
                queries=(
                    Query(recorded(f"{_GOOD}1h"), "{{model}}"),
                    Query(f"{recorded(f'{_GOOD}1h')} offset 1w", "a week ago, {{model}}"),
                ),
                unit=_USD,
            ),
            Panel(
                id=39,
                title="Output and good tokens",
                about="Dollars per million output tokens, and per million good ones: the gap is "
                "what requests beyond the SLO cost.",
                queries=(
                    Query(_per_million("octavo_generation_tokens_total"), "output"),
                    Query(_per_million("octavo_good_tokens_total"), "good"),
                ),
                unit=_USD,
            ),
        ),
        "Whose the bill is": (
            Panel(
                id=40,
                title="Share of the bill",
                about="Prefill and decode of all tenants, idle time, and overhead between steps.",
                queries=(Query(share(_BILL, "phase"), "{{phase}}"),),
                unit="percentunit",
                stacked=True,
                maximum=1,
            ),
            Panel(
                id=41,
                title="Dollars per hour by tenant",
                about="Shares of steps; (engine) pays for idle time and overhead. The first 32 "
                "tenants have a series of their own.",
                queries=(Query(f"3600 * {rate(_BILL, 'tenant')}", "{{tenant}}"),),
                unit=_USD,
                stacked=True,
            ),
            Panel(
                id=42,
                title="Dollars per million output tokens by tenant",
                about="Its own steps alone, without idle time and overhead: who asks for much and "
                "gets little, as with long prompts and short answers, stands high.",
                queries=(
                    Query(
                        _per_million("octavo_tenant_generation_tokens_total", "tenant"),
                        "{{tenant}}",
                    ),
                ),
                unit=_USD,
            ),
        ),
        "Prefix cache": (
            Panel(
                id=43,
                title="Saved by the prefix cache",
                about="Dollars per hour: prefill spared, what it takes to hold the blocks, and the "
                "difference. The bill is lower for it already.",
                queries=(
                    Query(f"3600 * {rate('octavo_prefix_cache_saved_usd_total')}", "saved"),
                    Query(f"3600 * {rate('octavo_prefix_cache_held_usd_total')}", "held"),
                    Query(
                        f"3600 * ({rate('octavo_prefix_cache_saved_usd_total')} - "
                        f"{rate('octavo_prefix_cache_held_usd_total')})",
                        "net",
                    ),
                ),
                unit=_USD,
                minimum=None,
            ),
            Panel(
                id=44,
                title="Saved by tenant",
                about="Dollars per hour of prefill that cached tokens have spared.",
                queries=(
                    Query(
                        f"3600 * {rate('octavo_prefix_cache_saved_usd_total', 'tenant')}",
                        "{{tenant}}",
                    ),
                ),
                unit=_USD,
                stacked=True,
            ),
        ),
        "Where the time goes": (
            Panel(
                id=45,
                title="Tokens per busy second",
                about="Output tokens / time in steps. It falls with fewer sequences at once, "
                "longer contexts, more prompt for each answer; or a slower engine.",
                queries=(
                    Query(
                        f"{rate('octavo_generation_tokens_total')} / "
                        f"({rate('octavo_busy_seconds_total')} > 0)",
                        "tokens/s",
                    ),
                ),
                unit="suffix: tokens/s",
            ),
            Panel(
                id=46,
                title="Share of time in steps by resource",
                about="Memory bandwidth or compute, at the rates that attribution has learned.",
                queries=(Query(share("octavo_step_seconds_total", "resource"), "{{resource}}"),),
                unit="percentunit",
                stacked=True,
                maximum=1,
            ),
            Panel(
                id=47,
                title="Bytes per output token",
                about="What steps had to move, weights and keys and values, / output tokens.",
                queries=(
                    Query(
                        f"{rate('octavo_step_bytes_total', 'kind')} / ignoring(kind) group_left() "
                        f"({rate('octavo_generation_tokens_total')} > 0)",
                        "{{kind}}",
                    ),
                ),
                unit="bytes",
                stacked=True,
            ),
        ),
    },
)
