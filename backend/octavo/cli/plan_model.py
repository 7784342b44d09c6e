"""`octavo plan MODEL`: reads what is asked for, and shows or writes what the planner finds."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.cli import plan_tables
from octavo.cli.bench_options import check_file, parsed_bytes
from octavo.cli.plan_machines import Candidate, candidate, read_constants, this_machine
from octavo.cli.plan_output import EXIT_BAD_INPUT, EXIT_PLANNED, write_json
from octavo.config import SLO
from octavo.errors import ConfigError, OctavoError
from octavo.models.known import find_config, known_names
from octavo.models.sizes import model_sizes
from octavo.planner.advice import next_change
from octavo.planner.capacity import Request
from octavo.planner.checks import number
from octavo.planner.hardware import accelerator_names, instance_names
from octavo.planner.latency import Efficiency
from octavo.planner.limits import binding_limit
from octavo.planner.model import ModelSizes, format_of
from octavo.planner.plan import Bill, Outcome, Workload, bill, evaluate
from octavo.planner.prices import Prices, load_prices
from octavo.planner.setup import Setup, fit, usual_batched_tokens, usual_sequences
from octavo.planner.stages import Stage, no_int4, stages

WEIGHT_FORMATS, KV_FORMATS = ("auto", "int8", "int4"), ("auto", "int8")

# Tables need the width; where nobody looks on, lines may be as long.
_out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str | None
    hardware: tuple[str, ...]
    measured: bool
    usd_per_hour: float | None
    prices: Path | None
    constants: Path | None
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int
    requests_per_s: float | None
    load_ratio: float
    ttft_s: float
    tpot_s: float
    dtype: str
    weight_format: str
    kv_cache_dtype: str
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_model_len: int | None
    kv_memory: str | None
    json_file: Path | None


@dataclass(frozen=True, slots=True)
class Planned:
    """All that is said of one machine.

    fits: requests at once, by weight format and KV format; None where a format does not suit
    notes: what the reader has to know of it, beside the candidate's
    """

    candidate: Candidate
    outcome: Outcome
    bill: Bill | None
    limit: str
    fits: dict[str, dict[str, int | None]]
    stages: list[Stage]
    stage_costs: list[float | None]
    advice: str | None
    notes: list[str]


def run(options: Options) -> int:
    """The exit code."""
    try:
        check_file("--json", options.json_file)
        model = _model(options)
        workload = _workload(options)
        efficiency = read_constants(options.constants)
        found = [
            _planned(model, each, workload, _setup(options, each), efficiency)
            for each in _candidates(options, model)
        ]
        if options.json_file is not None:
            write_json(options.json_file, document(model, workload, efficiency, found))
        if options.json_file != Path("-"):
            plan_tables.show(_out, model, workload, found, is_assumed=efficiency is None)
        if all(each.outcome.best is None for each in found):
            raise ConfigError(found[0].limit)
    except OctavoError as error:
        _err.print(f"octavo: {error}", style="bold red")
        return EXIT_BAD_INPUT
    return EXIT_PLANNED


def show_known() -> int:
    prices = load_prices()
    for title, names in (
        ("models", known_names()),
        ("accelerators and hosts", accelerator_names()),
        ("instances", instance_names()),
        ("APIs with prices", list(prices.models)),
    ):
        _out.print(f"{title}:", style="bold")
        _out.print("  " + "  ".join(names))
    return EXIT_PLANNED


def _model(options: Options) -> ModelSizes:
    if options.model is None:
        raise ConfigError(f"MODEL is missing; known: {', '.join(known_names())}")
    name, config = find_config(options.model)
    return model_sizes(config, name, options.dtype)


def _workload(options: Options) -> Workload:
    for field, value in (("--prompt", options.prompt_tokens), ("--output", options.output_tokens)):
        number(field, value, least=1)
    number("--shared", options.shared_tokens, most=options.prompt_tokens)
    if options.requests_per_s is not None:
        number("--rate", options.requests_per_s, above=True)
    return Workload(
        request=Request(options.prompt_tokens, options.output_tokens, options.shared_tokens),
        requests_per_s=options.requests_per_s,
        slo=SLO(
            ttft_s=number("--ttft", options.ttft_s, above=True),
            tpot_s=number("--tpot", options.tpot_s, above=True),
        ),
        load_ratio=number("--load", options.load_ratio, above=True, most=1),
    )


def _setup(options: Options, own: Candidate) -> Setup:
    kind = own.machine.accelerator.kind
    return Setup(
        weight_format=options.weight_format,
        kv_cache_dtype=options.kv_cache_dtype,
        max_num_seqs=options.max_num_seqs or usual_sequences(kind),
        max_num_batched_tokens=options.max_num_batched_tokens or usual_batched_tokens(kind),
        max_model_len=options.max_model_len,
        kv_cache_bytes=parsed_bytes(options.kv_memory),
    )


def _candidates(options: Options, model: ModelSizes) -> list[Candidate]:
    usd = options.usd_per_hour
    if usd is not None:
        number("--price", usd)
    if options.measured == bool(options.hardware):
        raise ConfigError(
            "--hardware: give NAME, or several with commas between, or --measured for this "
            f"machine; known are {', '.join(accelerator_names() + instance_names())}"
        )
    if options.measured:
        return [this_machine(format_of(model, options.weight_format).activation, usd)]
    prices: Prices = load_prices(options.prices)
    return [candidate(name, prices, usd) for name in options.hardware]


def _planned(
    model: ModelSizes,
    own: Candidate,
    workload: Workload,
    setup: Setup,
    efficiency: Efficiency | None,
) -> Planned:
    accelerator = own.machine.accelerator
    outcome = evaluate(model, accelerator, workload, setup, efficiency)
    steps = stages(model, accelerator, workload, setup, efficiency)
    bills = [_bill(each.outcome, own, workload) for each in steps]
    costs = [None if each is None else each.usd_per_million_good_tokens for each in bills]
    return Planned(
        candidate=own,
        outcome=outcome,
        bill=_bill(outcome, own, workload),
        limit=binding_limit(outcome, workload, own.machine.name),
        fits={
            weights: {kv: _fits(model, own, workload, setup, weights, kv) for kv in KV_FORMATS}
            for weights in WEIGHT_FORMATS
        },
        stages=steps,
        stage_costs=costs,
        advice=next_change(steps, costs),
        notes=[note for note in (no_int4(model, setup),) if note],
    )


def _bill(outcome: Outcome, own: Candidate, workload: Workload) -> Bill | None:
    """None without a batch or a price."""
    if outcome.best is None or own.machine_usd_per_hour is None:
        return None
    return bill(
        outcome, own.machine, own.machine_usd_per_hour, workload, whole_machines=own.is_whole
    )


def _fits(
    model: ModelSizes, own: Candidate, workload: Workload, setup: Setup, weights: str, kv: str
) -> int | None:
    try:
        tried = replace(setup, weight_format=weights, kv_cache_dtype=kv)
        return fit(model, own.machine.accelerator, workload.request, tried).requests
    except ConfigError:
        return None


def document(
    model: ModelSizes, workload: Workload, efficiency: Efficiency | None, found: list[Planned]
) -> dict[str, Any]:
    return {
        "model": asdict(model),
        "workload": asdict(workload),
        "is_assumed": efficiency is None,
        "machines": [_machine_document(each) for each in found],
    }


def _machine_document(planned: Planned) -> dict[str, Any]:
    own, outcome = planned.candidate, planned.outcome
    return {
        "machine": asdict(own.machine),
        "machine_usd_per_hour": own.machine_usd_per_hour,
        "note": own.note,
        "price": None
        if own.quote is None
        else {
            **asdict(own.quote),
            "as_of": str(own.quote.as_of),
            "is_stale": own.quote.is_stale(date.today()),
        },
        "setup": asdict(outcome.engine.setup),
        "efficiency": asdict(outcome.engine.speed.efficiency),
        "fit": asdict(outcome.fit),
        "requests_that_fit": planned.fits,
        "lone": None if outcome.lone is None else asdict(outcome.lone),
        "best": None if outcome.best is None else asdict(outcome.best),
        "limit": outcome.limit,
        "limit_sentence": planned.limit,
        "bill": None if planned.bill is None else asdict(planned.bill),
        "stages": [
            {
                "name": stage.name,
                "is_gated": stage.is_gated,
                "freed_bytes": stage.freed_bytes,
                "requests_that_fit": stage.outcome.fit.requests,
                "best": None if stage.outcome.best is None else asdict(stage.outcome.best),
                "limit": stage.outcome.limit,
                "usd_per_million_good_tokens": usd,
            }
            for stage, usd in zip(planned.stages, planned.stage_costs, strict=True)
        ],
        "advice": planned.advice,
        "notes": planned.notes,
    }
