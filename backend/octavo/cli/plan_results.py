"""What `octavo plan MODEL` finds on one machine, for its tables and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from octavo.cli.plan_machines import Candidate
from octavo.errors import ConfigError
from octavo.planner.advice import next_change
from octavo.planner.latency import Efficiency
from octavo.planner.limits import binding_limit
from octavo.planner.model import ModelSizes
from octavo.planner.plan import Bill, Outcome, Workload, bill, dtype_notes, evaluate
from octavo.planner.setup import Setup, fit
from octavo.planner.stages import Stage, no_int4, stages

WEIGHT_FORMATS, KV_FORMATS = ("auto", "int8", "int4"), ("auto", "int8")


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


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A machine that the model cannot be planned on; limit: why."""

    candidate: Candidate
    limit: str


def planned(
    model: ModelSizes,
    own: Candidate,
    workload: Workload,
    setup: Setup,
    efficiency: Efficiency | None,
) -> Planned:
    """Raises ConfigError."""
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
        notes=[
            *dtype_notes(model, accelerator, setup),
            *(note for note in (no_int4(model, setup),) if note),
        ],
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


def machine_document(found: Planned | Unplanned) -> dict[str, Any]:
    own = found.candidate
    quote = own.quote
    offer = {
        "machine": asdict(own.machine),
        "machine_usd_per_hour": own.machine_usd_per_hour,
        "note": own.note,
        "price": None
        if quote is None
        else {
            **asdict(quote),
            "as_of": str(quote.as_of),
            "is_stale": quote.is_stale(date.today()),
        },
    }
    if isinstance(found, Planned):
        return {**offer, **_planned_document(found)}
    return {**offer, "limit_sentence": found.limit, "best": None, "bill": None}


def _planned_document(planned: Planned) -> dict[str, Any]:
    outcome = planned.outcome
    return {
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
