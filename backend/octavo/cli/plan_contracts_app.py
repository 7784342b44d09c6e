"""Options of `octavo plan contracts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.plan_options import (
    DEFAULT_TPOT_S,
    DEFAULT_TTFT_S,
    KV,
    TPOT,
    TTFT,
    Dtype,
    MaxBatchedTokens,
    MaxNumSeqs,
    Weights,
)

_TRAFFIC, _ENGINE = "Traffic", "Engine"
_RENT, _OWN, _OUTPUT = "Prices of what is rented", "Own machines", "Output"

_HELP = "\n\n".join(
    (
        "What a month of your traffic costs under each contract: a token-based API, machines on "
        "demand, reserved or bought, and a hybrid of a floor that is committed to with spot and on "
        "demand above it. With break-evens, the worst month, and what a swing of a fifth changes.",
        "Traffic is a forecast (--rate) or the log of requests that the server writes: a JSON "
        "object a line with arrival_s, tenant, prompt_tokens, cached_tokens, output_tokens, "
        "finish_reason, ttft_s and e2e_s, no text.",
        "A contract is compared if it has a price. Prices on demand, of spot and of APIs are in "
        "the price file; a reserved price and what a machine costs to buy are yours to give. The "
        "floor of the hybrid is the newsvendor rule's, and a seeded simulation with interruptions "
        "checks it.",
        "Try: octavo plan contracts llama-3.1-8b --hardware p5.4xlarge --rate 40 --peak 1.8 "
        "--reserved 4.13 --api groq/llama-3.1-8b-instant --html contracts.html",
    )
)


def register(app: typer.Typer) -> None:
    app.command(
        "contracts", help=_HELP, epilog="Exit codes: 0 compared, 2 bad input or nothing fits."
    )(_contracts)


def _contracts(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name, folder or config.json.")],
    hardware: Annotated[str, typer.Option(help="Machine that would be rented or bought.")],
    traffic: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Recorded log of requests.", rich_help_panel=_TRAFFIC),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Forecast: requests per second of a weekday.", rich_help_panel=_TRAFFIC),
    ] = None,
    prompt: Annotated[
        int, typer.Option(help="Forecast: tokens of a prompt.", rich_help_panel=_TRAFFIC)
    ] = 1024,
    output: Annotated[
        int, typer.Option(help="Forecast: tokens of an answer.", rich_help_panel=_TRAFFIC)
    ] = 256,
    shared: Annotated[
        int,
        typer.Option(
            help="Forecast: tokens that all prompts begin with.", rich_help_panel=_TRAFFIC
        ),
    ] = 0,
    peak: Annotated[
        float,
        typer.Option(
            help="Forecast: busiest hour over a day's mean, 1 to 2.", rich_help_panel=_TRAFFIC
        ),
    ] = 1.5,
    weekend: Annotated[
        float,
        typer.Option(help="Forecast: a weekend day over a weekday.", rich_help_panel=_TRAFFIC),
    ] = 1.0,
    growth: Annotated[
        float, typer.Option(help="Forecast: growth a month, as 0.1.", rich_help_panel=_TRAFFIC)
    ] = 0.0,
    months: Annotated[
        int, typer.Option(help="Forecast: months of the comparison.", rich_help_panel=_TRAFFIC)
    ] = 1,
    ttft: TTFT = DEFAULT_TTFT_S,
    tpot: TPOT = DEFAULT_TPOT_S,
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kv: KV = "auto",
    max_num_seqs: MaxNumSeqs = None,
    max_batched_tokens: MaxBatchedTokens = None,
    load: Annotated[
        float,
        typer.Option(help="Share of an engine's capacity to plan for.", rich_help_panel=_ENGINE),
    ] = 0.7,
    capacity: Annotated[
        float | None,
        typer.Option(
            help="Requests per second that an engine was measured to serve within the SLO.",
            show_default="predicted",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    constants: Annotated[
        Path | None,
        typer.Option(help="The engine's fitted shares of the peaks.", rich_help_panel=_ENGINE),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="Your prices; they go first.", rich_help_panel=_RENT),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(help="Dollars per hour on demand.", rich_help_panel=_RENT),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(help="API model of the price file to compare with.", rich_help_panel=_RENT),
    ] = None,
    reserved: Annotated[
        float | None,
        typer.Option(help="Dollars per hour reserved: your offer.", rich_help_panel=_RENT),
    ] = None,
    spot: Annotated[
        float | None,
        typer.Option(
            help="Dollars per hour of spot.",
            show_default="the highest in the price file",
            rich_help_panel=_RENT,
        ),
    ] = None,
    interruptions: Annotated[
        float, typer.Option(help="Of a spot machine, per hour.", rich_help_panel=_RENT)
    ] = 0.05,
    interruption: Annotated[
        float,
        typer.Option(
            help="Seconds an interruption costs: drain, reload, lost work.", rich_help_panel=_RENT
        ),
    ] = 600.0,
    spot_availability: Annotated[
        float,
        typer.Option(
            help="Share of the time that spot can be had; else on demand.", rich_help_panel=_RENT
        ),
    ] = 0.9,
    start: Annotated[
        float,
        typer.Option(help="Seconds until a rented machine serves.", rich_help_panel=_RENT),
    ] = 300.0,
    capital: Annotated[
        float | None, typer.Option(help="Dollars that a machine costs.", rich_help_panel=_OWN)
    ] = None,
    years: Annotated[
        float, typer.Option(help="Years of amortisation.", rich_help_panel=_OWN)
    ] = 4.0,
    power: Annotated[
        float | None,
        typer.Option(
            help="Kilowatts of a machine.",
            show_default="its accelerators'",
            rich_help_panel=_OWN,
        ),
    ] = None,
    kwh: Annotated[
        float | None, typer.Option(help="Dollars of a kilowatt hour.", rich_help_panel=_OWN)
    ] = None,
    pue: Annotated[
        float, typer.Option(help="Power of the building over the machine's.", rich_help_panel=_OWN)
    ] = 1.3,
    operation: Annotated[
        float,
        typer.Option(help="Dollars a year: space, staff, upkeep.", rich_help_panel=_OWN),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the simulation.", rich_help_panel=_OUTPUT)] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all of it; - is stdout.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw it; .svg and .pdf too. Needs matplotlib.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE.html",
            help="One page with tables and plots. Needs matplotlib.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    from octavo.cli import plan_contracts as command
    from octavo.cli.plan_terms import Options

    options = Options(
        given=_given(context),
        model=model,
        hardware=hardware,
        traffic=traffic,
        requests_per_s=rate,
        prompt_tokens=prompt,
        output_tokens=output,
        shared_tokens=shared,
        peak_ratio=peak,
        weekend_ratio=weekend,
        growth_ratio=growth,
        months=months,
        ttft_s=ttft,
        tpot_s=tpot,
        dtype=dtype,
        weight_format=weights,
        kv_cache_dtype=kv,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_batched_tokens,
        load_ratio=load,
        capacity_per_s=capacity,
        constants=constants,
        prices=prices,
        usd_per_hour=price,
        api=api,
        reserved_usd_per_hour=reserved,
        spot_usd_per_hour=spot,
        interruptions_per_hour=interruptions,
        spot_availability_ratio=spot_availability,
        interruption_s=interruption,
        start_s=start,
        capital_usd=capital,
        amortisation_years=years,
        power_kw=power,
        usd_per_kwh=kwh,
        pue_ratio=pue,
        yearly_operation_usd=operation,
        seed=seed,
        json_file=json_file,
        plot_file=plot_file,
        html_file=html_file,
    )
    raise typer.Exit(command.run(options))


def _given(context: typer.Context) -> frozenset[str]:
    """Names of the options that the command line has."""
    found = set()
    for each in context.command.params:
        source = context.get_parameter_source(each.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found.add(each.opts[0])
    return frozenset(found)
