"""`octavo plan contracts`: traffic and offers in, dollars of each contract out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.cli.bench_options import check_apart, check_file, check_picture
from octavo.cli.plan_machines import candidate, read_constants
from octavo.cli.plan_output import EXIT_BAD_INPUT, EXIT_PLANNED, PipeConsole, usd, write_json
from octavo.cli.plan_terms import MOST_MACHINE_USD, Options, check_options, terms_of
from octavo.config import SLO
from octavo.errors import ConfigError, OctavoError
from octavo.models.known import find_config
from octavo.models.sizes import model_sizes
from octavo.planner import comparison, simulation, traffic
from octavo.planner.capacity import Request
from octavo.planner.checks import number
from octavo.planner.contracts import (
    Contract,
    Terms,
    committed,
    contracts,
    machines_needed,
    newsvendor_floor,
)
from octavo.planner.cost import HOUR_S, MONTH_HOURS
from octavo.planner.hardware import Machine
from octavo.planner.limits import binding_limit
from octavo.planner.plan import Outcome, Workload, dtype_notes, evaluate
from octavo.planner.prices import load_prices, stale_notes
from octavo.planner.setup import Setup, usual_batched_tokens, usual_sequences
from octavo.planner.traffic import LoggedRequest, Traffic

_out = PipeConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
# Beyond these it is a slip of the keyboard.
MOST_MACHINES, MOST_GROWTH = 1_000_000, 1000
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Compared:
    """All that is said.

    rule_floor: the newsvendor's; floor: that the hybrid is priced with
    slo_ratio: of the recorded requests, those that met the SLO
    """

    model: str
    machine: Machine
    traffic: Traffic
    terms: Terms
    found: list[Contract]
    worst: dict[str, float]
    break_evens: list[comparison.BreakEven]
    swings: list[comparison.Swing]
    by_scale: list[tuple[float, dict[str, float]]]
    rule_floor: int
    floor: int
    simulated: list[simulation.Simulated]
    slo_ratio: float | None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run(options: Options) -> int:
    """The exit code."""
    try:
        check_apart({"--json": options.json_file, "--plot": options.plot_file,
                     "--html": options.html_file})  # fmt: skip
        check_file("--json", options.json_file)
        check_picture("--plot", options.plot_file)
        check_file("--html", options.html_file)
        check_options(options)
        compared = _compared(options)
        # Files before what is printed: who reads that may leave before its end.
        if options.plot_file is not None:
            from octavo.cli.plan_plots import draw

            draw(compared, options.plot_file)
        if options.html_file is not None:
            from octavo.cli.plan_page import page

            options.html_file.write_text(page(compared), encoding="utf-8")
        if options.json_file is not None:
            write_json(options.json_file, document(compared))
        if options.json_file != Path("-"):
            from octavo.cli.plan_contract_tables import show

            show(_out, compared)
    except (OctavoError, OSError) as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_BAD_INPUT
    return EXIT_PLANNED


def _compared(options: Options) -> Compared:
    log = None if options.traffic is None else traffic.read_log(options.traffic)
    request, own = _traffic(options, log)
    slo = SLO(
        ttft_s=number("--ttft", options.ttft_s, above=True),
        tpot_s=number("--tpot", options.tpot_s, above=True),
    )
    prices = load_prices(options.prices)
    if options.usd_per_hour is not None:
        number("--price", options.usd_per_hour, most=MOST_MACHINE_USD)
    hardware = candidate(options.hardware, prices, options.usd_per_hour)
    if hardware.machine_usd_per_hour is None:
        raise ConfigError(f"--hardware = {options.hardware}: {hardware.note}")
    api = None if options.api is None else prices.model(options.api)
    if api is not None:
        asked: Sequence[LoggedRequest | Request] = log or [request]
        api.check_serves(
            max(each.prompt_tokens for each in asked), max(each.output_tokens for each in asked)
        )
    # A month is rented by the machine; of one accelerator its share is taken.
    count = hardware.machine.count if hardware.is_whole else 1
    own_usd = hardware.machine_usd_per_hour / (1 if hardware.is_whole else hardware.machine.count)
    machine = Machine(hardware.machine.name, hardware.machine.accelerator, count)
    outcome = _outcome(options, machine, Workload(request, slo=slo))
    terms, quotes = terms_of(options, prices, machine, outcome, own_usd, own.total)
    if hardware.quote is not None:
        quotes.append(hardware.quote)
    needed = machines_needed(own, terms)
    if max(needed) > MOST_MACHINES:
        raise ConfigError(
            f"the peak needs {max(needed):,} machines of {machine.name}: at most {MOST_MACHINES:,} "
            "are planned; see the traffic, --capacity and --load"
        )
    rule, floor = newsvendor_floor(needed, terms), committed(own, terms).floor
    floors = simulation.floors_to_try(needed, terms, rule, floor)
    notes = [hardware.note] if hardware.note else []
    if api is not None and (other := api.other_model_note(outcome.engine.loaded.model.name)):
        notes.append(other)
    notes += dtype_notes(outcome.engine.loaded.model, machine.accelerator, outcome.engine.setup)
    notes += stale_notes(quotes, date.today())
    notes += _spot_notes(options, terms)
    if terms.reserved_usd_per_hour is None:
        notes.append("no reserved price: none is invented; give what you were offered: --reserved")
    return Compared(
        model=options.model,
        machine=machine,
        traffic=own,
        terms=terms,
        found=contracts(own, terms),
        worst=comparison.worst_month(own, terms),
        break_evens=comparison.break_evens(own, terms),
        swings=comparison.sensitivity(own, terms),
        by_scale=comparison.by_scale(own, terms),
        rule_floor=rule,
        floor=floor,
        simulated=simulation.simulate(needed, own.bucket_hours, terms, floors, options.seed)
        if terms.has_hybrid
        else [],
        slo_ratio=None if log is None else sum(each.meets(slo) for each in log) / len(log),
        notes=notes,
        warnings=_warnings(own) if log is not None else [],
    )


def _spot_notes(options: Options, terms: Terms) -> list[str]:
    spot = terms.spot
    if spot is None:
        return []
    often = f"{spot.interruptions_per_hour:g} interruptions an hour of {options.interruption_s:g} s"
    if not terms.uses_spot:
        on_demand = usd(terms.on_demand_usd_per_hour)
        return [
            f"spot is not used: at {spot.usd_per_hour:g} dollars an hour and {often} a useful hour "
            f"costs {usd(spot.effective_usd_per_hour)}, on demand {on_demand}"
        ]
    return [
        f"spot is taken as {spot.usd_per_hour:g} dollars an hour, there "
        f"{spot.availability_ratio:.0%} of the time, with {often}: put in what you see (--spot, "
        "--spot-availability, --interruptions, --interruption)"
    ]


def _warnings(own: Traffic) -> list[str]:
    if own.hours >= 1:
        return []
    seconds = own.hours * HOUR_S
    span = f"{seconds:,.3g} s" if seconds < 120 else f"{seconds / 60:,.3g} minutes"
    return [
        f"the log spans {span}, and a month is made of {MONTH_HOURS / own.hours:,.0f} times the "
        "same: that is a guess at your traffic; record a day or more"
    ]


def _traffic(options: Options, log: list[LoggedRequest] | None) -> tuple[Request, Traffic]:
    """And the request that an engine's speed is planned with."""
    if (log is None) == (options.requests_per_s is None):
        raise ConfigError("traffic: give --traffic FILE, a recorded log, or --rate for a forecast")
    if log is not None:
        own = traffic.recorded(log)
        return traffic.mean_request(own.total), own
    assert options.requests_per_s is not None
    for name, value in (("--prompt", options.prompt_tokens), ("--output", options.output_tokens)):
        number(name, value, least=1)
    number("--shared", options.shared_tokens, most=options.prompt_tokens)
    request = Request(options.prompt_tokens, options.output_tokens, options.shared_tokens)
    growth = number("--growth", options.growth_ratio, least=-0.9, most=1)
    months = int(number("--months", options.months, least=1, most=60))
    if (1 + growth) ** (months - 1) > MOST_GROWTH:
        raise ConfigError(
            f"--growth = {growth:g} in --months = {months}: traffic would grow "
            f"{(1 + growth) ** (months - 1):,.3g} times, at most {MOST_GROWTH:,} times is planned"
        )
    setup = Setup()
    return request, traffic.forecast(
        request,
        number("--rate", options.requests_per_s, least=1e-6, most=1e6),
        cached_tokens=request.cached_tokens(setup.block_size),
        peak_ratio=number("--peak", options.peak_ratio, least=1, most=2),
        weekend_ratio=number("--weekend", options.weekend_ratio, most=10),
        monthly_growth_ratio=growth,
        months=months,
    )


def _outcome(options: Options, machine: Machine, workload: Workload) -> Outcome:
    name, config = find_config(options.model)
    kind = machine.accelerator.kind
    setup = Setup(
        weight_format=options.weight_format,
        kv_cache_dtype=options.kv_cache_dtype,
        max_num_seqs=options.max_num_seqs or usual_sequences(kind),
        max_num_batched_tokens=options.max_num_batched_tokens or usual_batched_tokens(kind),
    )
    outcome = evaluate(
        model_sizes(config, name, options.dtype), machine.accelerator, workload, setup,
        read_constants(options.constants),
    )  # fmt: skip
    if outcome.best is None:
        raise ConfigError(binding_limit(outcome, workload, machine.name))
    return outcome


def document(compared: Compared) -> dict[str, Any]:
    return {
        "model": compared.model,
        "machine": asdict(compared.machine),
        "hours": compared.traffic.hours,
        "traffic": asdict(compared.traffic.total),
        "slo_ratio": compared.slo_ratio,
        "terms": asdict(compared.terms),
        "contracts": [
            {**asdict(each), "worst_usd_per_month": compared.worst[each.name]}
            for each in compared.found
        ],
        "break_evens": [asdict(each) for each in compared.break_evens],
        "sensitivity": [asdict(each) for each in compared.swings],
        "by_scale": [{"scale": scale, **usd} for scale, usd in compared.by_scale],
        "newsvendor_floor": compared.rule_floor,
        "floor": compared.floor,
        "simulated": [asdict(each) for each in compared.simulated],
        "notes": compared.notes,
        "warnings": compared.warnings,
    }
