"""What `octavo plan MODEL` prints: one machine at length, several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

from rich.console import Console
from rich.table import Table

from octavo.cli.plan_output import NONE, plain_table, usd
from octavo.cli.plan_results import Planned, Unplanned
from octavo.planner.limits import gib, milliseconds
from octavo.planner.model import ModelSizes
from octavo.planner.plan import Bill, Workload
from octavo.planner.prices import stale_notes

_SAME = 0.005  # a difference of less is none: predictions are not that good


def show(
    console: Console,
    model: ModelSizes,
    workload: Workload,
    found: Sequence[Planned | Unplanned],
    *,
    is_assumed: bool,
) -> None:
    console.print(f"{model.name}: {_load(workload)}", style="bold", soft_wrap=True)
    planned = [each for each in found if isinstance(each, Planned)]
    if len(found) == 1:
        _alone(console, model, planned[0])
    else:
        _side_by_side(console, found, planned)
    console.print()
    notes = _rate_notes(workload, planned)
    notes += [each.candidate.note for each in found if each.candidate.note]
    notes += [note for each in planned for note in each.notes]
    quotes = [each.candidate.quote for each in found if each.candidate.quote]
    notes += stale_notes(quotes, date.today())
    if any(stage.is_gated for each in planned for stage in each.stages):
        notes.append("* changes what the model computes: measure its quality with octavo gate")
    if is_assumed:
        notes.append(
            "times assume shares of the peaks that the engine reached on an H200 or on a small "
            "CPU host; fit yours with bench/plan_check.py and give --constants"
        )
    for note in dict.fromkeys(notes):
        console.print(f"Note: {note}", style="dim", soft_wrap=True)


def _load(workload: Workload) -> str:
    request, slo = workload.request, workload.slo
    shared = f" ({request.shared_tokens:,} of them shared)" if request.shared_tokens else ""
    rate = "" if workload.requests_per_s is None else f", {workload.requests_per_s:g} requests/s"
    return (
        f"{request.prompt_tokens:,} prompt{shared} + {request.output_tokens:,} output tokens{rate}"
        f"; TTFT ≤ {slo.ttft_s:g} s, TPOT ≤ {slo.tpot_s * 1e3:g} ms"
    )


def _rate_notes(workload: Workload, found: Sequence[Planned]) -> list[str]:
    """What the bills take for granted, and accelerators that they pay for idle."""
    billed = [(each.candidate.machine, each.bill) for each in found if each.bill is not None]
    notes = [
        f"at {bill.requests_per_s:g} requests/s {bill.idle_accelerators} of "
        f"{bill.idle_accelerators + bill.replicas} accelerators on {machine.name} are paid for idle"
        for machine, bill in billed
        if bill.idle_accelerators
    ]
    if billed and workload.requests_per_s is None:
        served = ", ".join(
            f"{bill.requests_per_s:.3g} requests/s by {bill.replicas} on {machine.name}"
            for machine, bill in billed
        )
        notes.append(
            "no --rate is given: each machine is priced with as many requests as all its engines "
            f"serve at {workload.load_ratio:.0%} of their capacity ({served})"
        )
    return notes


def _alone(console: Console, model: ModelSizes, planned: Planned) -> None:
    outcome, fit = planned.outcome, planned.outcome.fit
    console.print(f"on {planned.candidate.machine.accelerator.title}", soft_wrap=True)
    console.print()
    console.print(
        f"Weights {gib(fit.weights.stored)} ({gib(fit.weights.step)} read a step) · KV memory "
        f"{_memory(planned)} · a token {gib(fit.token_bytes)} · a "
        f"request {gib(fit.request_bytes)}",
        soft_wrap=True,
    )
    console.print()
    own = model.dtype if model.stored_format is None else str(model.stored_format)
    table = plain_table(
        "Requests that fit", *(f"KV {_named(kv, model.dtype)}" for kv in _kvs(planned))
    )
    for weights, by_kv in planned.fits.items():
        cells = (NONE if count is None else f"{count:,}" for count in by_kv.values())
        table.add_row(f"weights {_named(weights, own)}", *cells)
    console.print(table)
    if outcome.best is not None:
        console.print()
        console.print(_speeds(planned))
    if planned.bill is not None:
        console.print()
        console.print(_costs(planned, planned.bill))
    console.print()
    console.print(planned.limit, style="bold", soft_wrap=True)
    console.print()
    console.print(_stages(planned))
    if planned.advice:
        console.print()
        console.print(planned.advice, style="bold", soft_wrap=True)


def _memory(planned: Planned) -> str:
    num_bytes = planned.outcome.fit.kv_bytes
    return gib(num_bytes) if num_bytes > 0 else "none"


def _kvs(planned: Planned) -> list[str]:
    return list(next(iter(planned.fits.values())))


def _named(name: str, own: str) -> str:
    return own if name == "auto" else name


def _speeds(planned: Planned) -> Table:
    """Of one request alone, at the largest batch, at the rate."""
    outcome, bill = planned.outcome, planned.bill
    assert outcome.lone is not None and outcome.best is not None
    table = plain_table("", "batch", "TTFT", "TPOT", "output tok/s", "MBU")
    rows = [
        ("one request alone", outcome.lone, outcome.lone.requests_per_s),
        ("largest batch within the SLO", outcome.best, outcome.best.requests_per_s),
    ]
    if bill is not None:
        each = bill.requests_per_s / bill.replicas
        rows.append((f"as planned: {each:.3g} requests/s each", bill.at_load, each))
    for name, found, rate in rows:
        table.add_row(
            name, f"{found.batch:,.4g}", milliseconds(found.ttft_s), milliseconds(found.tpot_s),
            f"{rate * outcome.engine.request.output_tokens:,.0f}", f"{found.mbu_ratio:.0%}",
        )  # fmt: skip
    return table


def _costs(planned: Planned, bill: Bill) -> Table:
    table = plain_table("Cost", "")
    name = planned.candidate.machine.name
    number = bill.machines if planned.candidate.is_whole else bill.replicas
    for heading, value in (
        (f"dollars an hour, {number:,.0f} × {name}", bill.usd_per_hour),
        ("dollars per million good output tokens", bill.usd_per_million_good_tokens),
        ("by the engine's time: per million output tokens", bill.output_usd_per_million),
        ("and per million prompt tokens", bill.input_usd_per_million),
    ):
        table.add_row(heading, usd(value))
    return table


def _stages(planned: Planned) -> Table:
    table = plain_table("Playbook", "frees", "fit", "batch", "TPOT", "$/M good")
    for stage, cost in zip(planned.stages, planned.stage_costs, strict=True):
        found = stage.outcome.best
        freed = gib(stage.freed_bytes) if stage.freed_bytes > 0 else ""
        table.add_row(
            stage.name + " *" * stage.is_gated, freed, f"{stage.outcome.fit.requests:,}",
            NONE if found is None else f"{found.batch:,.0f}",
            NONE if found is None else milliseconds(found.tpot_s),
            usd(cost),
        )  # fmt: skip
    return table


def _side_by_side(
    console: Console, found: Sequence[Planned | Unplanned], planned: Sequence[Planned]
) -> None:
    table = plain_table("", *(each.candidate.machine.name for each in found))

    def row(name: str, cell: Callable[[Planned], str]) -> None:
        table.add_row(name, *(cell(each) if isinstance(each, Planned) else NONE for each in found))

    def best(each: Planned, shown: str) -> str:
        prediction, bill = each.outcome.best, each.bill
        if prediction is None:
            return NONE
        output = each.outcome.engine.request.output_tokens
        values = {
            "batch": f"{prediction.batch:,.0f}",
            "ttft": milliseconds(prediction.ttft_s),
            "tpot": milliseconds(prediction.tpot_s),
            "speed": f"{prediction.requests_per_s * output:,.0f}",
            "mbu": f"{prediction.mbu_ratio:.0%}",
            "replicas": NONE if bill is None else f"{bill.replicas:,}",
            "hour": usd(None if bill is None else bill.usd_per_hour),
            "good": usd(None if bill is None else bill.usd_per_million_good_tokens),
        }
        return values[shown]

    row("KV memory", _memory)
    row("requests that fit", lambda each: f"{each.outcome.fit.requests:,}")
    row("binds", lambda each: each.outcome.limit)
    table.add_row()
    for name, shown in (
        ("largest batch within the SLO", "batch"), ("TTFT", "ttft"), ("TPOT", "tpot"),
        ("output tok/s of an engine", "speed"), ("MBU", "mbu"), ("engines", "replicas"),
        ("$ per hour", "hour"), ("$ per million good tokens", "good"),
    ):  # fmt: skip
        row(name, partial(best, shown=shown))
    console.print()
    console.print(table)
    console.print()
    for each in found:
        console.print(f"{each.candidate.machine.name}: {each.limit}", soft_wrap=True)
    priced = [each for each in planned if each.bill is not None]
    if len(priced) > 1:
        console.print()
        console.print(_cheapest(sorted(priced, key=_cost)), style="bold", soft_wrap=True)


def _cheapest(priced: Sequence[Planned]) -> str:
    """Of at least two, the cheapest first."""
    least, (first, second) = _cost(priced[0]), (each.candidate.machine.name for each in priced[:2])
    price = f"{usd(least)} per million good tokens"
    same = [each.candidate.machine.name for each in priced if _cost(each) * (1 - _SAME) <= least]
    if len(same) > 1:
        return f"The cheapest, at the same cost: {', '.join(same)}: {price}."
    saved = 1 - least / _cost(priced[1])
    return f"{first} is the cheapest: {price}, {saved:.0%} less than {second}."


def _cost(planned: Planned) -> float:
    assert planned.bill is not None
    return planned.bill.usd_per_million_good_tokens
