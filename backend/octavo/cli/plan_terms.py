"""What is asked of `octavo plan contracts`, and the offers in it as the planner's terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.planner.checks import number
from octavo.planner.contracts import EngineTime, OnPremise, Spot, Terms, TokenTerms
from octavo.planner.hardware import Machine
from octavo.planner.plan import Outcome
from octavo.planner.prices import Prices, Quote
from octavo.planner.traffic import Volume

MOST_MACHINE_USD = 1e6
_FORECAST = ("--prompt", "--output", "--shared", "--peak", "--weekend", "--growth", "--months")
_OWN = ("--years", "--power", "--kwh", "--pue", "--operation")
_SPOT = ("--interruptions", "--interruption", "--spot-availability")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """given: names of the options that were, whatever their values"""

    given: frozenset[str]
    model: str
    hardware: str
    traffic: Path | None
    requests_per_s: float | None
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int
    peak_ratio: float
    weekend_ratio: float
    growth_ratio: float
    months: int
    ttft_s: float
    tpot_s: float
    dtype: str
    weight_format: str
    kv_cache_dtype: str
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    load_ratio: float
    capacity_per_s: float | None
    constants: Path | None
    prices: Path | None
    usd_per_hour: float | None
    api: str | None
    reserved_usd_per_hour: float | None
    spot_usd_per_hour: float | None
    interruptions_per_hour: float
    spot_availability_ratio: float
    interruption_s: float
    start_s: float
    capital_usd: float | None
    amortisation_years: float
    power_kw: float | None
    usd_per_kwh: float | None
    pue_ratio: float
    yearly_operation_usd: float
    seed: int
    json_file: Path | None
    plot_file: Path | None
    html_file: Path | None


def check_options(options: Options) -> None:
    """Raises ConfigError for one that would change nothing."""
    if options.traffic is not None:
        _refuse(options, _FORECAST, "is of a forecast, and --traffic is recorded")
    if options.capital_usd is None:
        _refuse(options, _OWN, "is of a machine that is bought; give --capital")


def _refuse(options: Options, names: tuple[str, ...], why: str) -> None:
    unused = [name for name in names if name in options.given]
    if unused:
        raise ConfigError(f"{unused[0]} {why}")


def _engine_time(outcome: Outcome, total: Volume, capacity_per_s: float | None) -> EngineTime:
    """By token, of requests as planned; scaled to a capacity of the traffic's requests."""
    best, engine = outcome.best, outcome.engine
    assert best is not None
    request = engine.request
    fresh = request.prompt_tokens - request.cached_tokens(engine.setup.block_size)
    time = EngineTime(best.prefill_s / fresh, best.decode_s / request.output_tokens)
    if capacity_per_s is None:
        return time
    capacity = number("--capacity", capacity_per_s, least=1e-6, most=1e9)
    factor = total.requests / capacity / time.of(total)
    return EngineTime(time.prefill_s * factor, time.decode_s * factor)


def terms_of(
    options: Options,
    prices: Prices,
    machine: Machine,
    outcome: Outcome,
    usd_per_hour: float,
    total: Volume,
) -> tuple[Terms, list[Quote]]:
    """total: the traffic's"""
    quotes: list[Quote] = []
    api = None
    if options.api is not None:
        found = prices.model(options.api)
        quotes.append(found.quote)
        api = TokenTerms(
            found.input_cost_per_token,
            found.output_cost_per_token,
            found.cache_read_input_token_cost,
        )
    price = prices.of(machine.name)
    reserved = options.reserved_usd_per_hour
    if reserved is not None:
        number("--reserved", reserved, most=MOST_MACHINE_USD)
    elif price is not None:
        reserved = price.reserved_usd_per_hour
    return Terms(
        engine=_engine_time(outcome, total, options.capacity_per_s),
        engines=machine.count,
        on_demand_usd_per_hour=usd_per_hour,
        reserved_usd_per_hour=reserved,
        spot=_spot(options, price.spot_usd_per_hour if price is not None else None),
        on_premise=_on_premise(options, machine),
        api=api,
        load_ratio=number("--load", options.load_ratio, least=0.01, most=1),
        start_s=number("--start", options.start_s, most=1e6),
    ), quotes


def _spot(options: Options, seen: tuple[float, float] | None) -> Spot | None:
    """The dearest that was seen, unless a price is given."""
    usd = options.spot_usd_per_hour
    if usd is None:
        if seen is None:
            _refuse(options, _SPOT, "is of spot, of which no price is known; give --spot")
            return None
        usd = seen[1]
    third_s = number("--interruption", options.interruption_s, most=1e6) / 3
    return Spot(
        usd_per_hour=number("--spot", usd, most=MOST_MACHINE_USD),
        interruptions_per_hour=number("--interruptions", options.interruptions_per_hour, most=3600),
        availability_ratio=number("--spot-availability", options.spot_availability_ratio, most=1),
        drain_s=third_s,
        reload_s=third_s,
        lost_s=third_s,
    )


def _on_premise(options: Options, machine: Machine) -> OnPremise | None:
    if options.capital_usd is None:
        return None
    if options.usd_per_kwh is None:
        raise ConfigError("--kwh is missing: dollars of a kilowatt hour, with --capital")
    power = options.power_kw
    if power is None:
        watts = machine.accelerator.power_w
        if watts is None:
            raise ConfigError(f"--power is missing: no power of {machine.name} is known")
        power = watts * machine.count / 1000
    return OnPremise(
        capital_usd=number("--capital", options.capital_usd, most=1e9),
        amortisation_years=number("--years", options.amortisation_years, least=0.1, most=100),
        power_kw=number("--power", power, most=1e6),
        usd_per_kwh=number("--kwh", options.usd_per_kwh, most=1000),
        pue_ratio=number("--pue", options.pue_ratio, least=1, most=10),
        yearly_operation_usd=number("--operation", options.yearly_operation_usd, most=1e9),
    )
