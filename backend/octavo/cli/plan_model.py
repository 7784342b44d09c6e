"""`octavo plan MODEL`: reads what is asked for, and shows or writes what the planner finds."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.cli import plan_tables
from octavo.cli.bench_options import check_file, parsed_bytes
from octavo.cli.plan_machines import (
    THIS_MACHINE,
    Candidate,
    candidate,
    read_constants,
    this_machine,
)
from octavo.cli.plan_output import EXIT_BAD_INPUT, EXIT_PLANNED, PipeConsole, write_json
from octavo.cli.plan_results import Planned, Unplanned, machine_document, planned
from octavo.config import SLO
from octavo.errors import ConfigError, OctavoError
from octavo.models.known import find_config, known_names
from octavo.models.sizes import model_sizes
from octavo.planner.capacity import Request
from octavo.planner.checks import number
from octavo.planner.hardware import accelerator_names, instance_names
from octavo.planner.latency import Efficiency
from octavo.planner.model import ModelSizes, format_of
from octavo.planner.plan import Workload
from octavo.planner.prices import Prices, load_prices
from octavo.planner.setup import Setup, usual_batched_tokens, usual_sequences

# Tables need the width; where nobody looks on, lines may be as long.
_out = PipeConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str | None
    hardware: tuple[str, ...]
    measured: bool
    usd_per_hour: tuple[str, ...]
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


def run(options: Options) -> int:
    """The exit code."""
    try:
        check_file("--json", options.json_file)
        model = _model(options)
        workload = _workload(options)
        efficiency = read_constants(options.constants)
        found = _found(options, model, workload, efficiency)
        if options.json_file is not None:
            write_json(options.json_file, document(model, workload, efficiency, found))
        if options.json_file != Path("-"):
            plan_tables.show(_out, model, workload, found, is_assumed=efficiency is None)
        if all(isinstance(each, Unplanned) or each.outcome.best is None for each in found):
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
    if options.max_model_len is not None:
        number("--max-model-len", options.max_model_len, least=1)
    return Setup(
        weight_format=options.weight_format,
        kv_cache_dtype=options.kv_cache_dtype,
        max_num_seqs=options.max_num_seqs or usual_sequences(kind),
        max_num_batched_tokens=options.max_num_batched_tokens or usual_batched_tokens(kind),
        max_model_len=options.max_model_len,
        kv_cache_bytes=parsed_bytes(options.kv_memory),
    )


def _candidates(options: Options, model: ModelSizes) -> list[Candidate]:
    if options.measured == bool(options.hardware):
        raise ConfigError(
            "--hardware: give NAME, or several with commas between, or --measured for this "
            f"machine; known are {', '.join(accelerator_names() + instance_names())}"
        )
    given = _given_prices(options)
    if options.measured:
        return [this_machine(format_of(model, options.weight_format).activation, given[0])]
    prices: Prices = load_prices(options.prices)
    return [candidate(name, prices, usd) for name, usd in zip(options.hardware, given, strict=True)]


def _given_prices(options: Options) -> list[float | None]:
    """Of each machine; None: the file's. Raises ConfigError."""
    machines, given = options.hardware or (THIS_MACHINE,), options.usd_per_hour
    if not given:  # the option's default
        return [None] * len(machines)
    shown = ",".join(given)
    if len(given) != len(machines):
        raise ConfigError(
            f"--price = {shown}: {len(given)} for {len(machines)} machine(s), "
            f"{', '.join(machines)}; give one for each, in their order"
        )
    try:
        usd = [float(part) for part in given]
    except ValueError:
        raise ConfigError(f"--price = {shown}: dollars per hour are expected, 0 or more") from None
    return [number("--price", each) for each in usd]


def _found(
    options: Options, model: ModelSizes, workload: Workload, efficiency: Efficiency | None
) -> list[Planned | Unplanned]:
    """A machine among several that cannot be planned is said to be so, and stops no other.
    Raises ConfigError if it is the only one, or none can be."""
    found: list[Planned | Unplanned] = []
    errors: list[ConfigError] = []
    for own in _candidates(options, model):
        try:
            found.append(planned(model, own, workload, _setup(options, own), efficiency))
        except ConfigError as error:
            found.append(Unplanned(own, str(error)))
            errors.append(error)
    if len(errors) == len(found):
        raise errors[0]
    return found


def document(
    model: ModelSizes,
    workload: Workload,
    efficiency: Efficiency | None,
    found: list[Planned | Unplanned],
) -> dict[str, Any]:
    return {
        "model": asdict(model),
        "workload": asdict(workload),
        "is_assumed": efficiency is None,
        "machines": [machine_document(each) for each in found],
    }
