"""The playbook's order on paper: each change over the one before, and what it frees and saves.

Paging and sharing lose nothing, so they come first. Formats of fewer bits come behind the quality
gate, and a larger batch last, when there is room for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.errors import ConfigError
from octavo.planner.hardware import Accelerator
from octavo.planner.latency import Efficiency
from octavo.planner.model import ModelSizes, format_of
from octavo.planner.plan import Outcome, Workload, evaluate
from octavo.planner.setup import MOST_SEQUENCES, Setup


@dataclass(frozen=True, slots=True)
class Stage:
    """freed_bytes: less needed than in the stage before, for the requests that fitted there
    is_gated: it changes what the model computes, so its quality has to be measured
    """

    name: str
    setup: Setup
    outcome: Outcome
    freed_bytes: int
    is_gated: bool = False


def stages(
    model: ModelSizes,
    accelerator: Accelerator,
    workload: Workload,
    setup: Setup,
    efficiency: Efficiency | None = None,
) -> list[Stage]:
    """From one contiguous piece of KV memory for each request to all that `setup` leaves to gain.
    A stage that `setup` has gone beyond, or that can change nothing, is left out."""
    contiguous = replace(setup, paged=False, share_prefix=False)
    paged = replace(setup, share_prefix=False)
    steps = [("contiguous KV memory", contiguous, False), ("paging", paged, False)]
    shared = replace(paged, share_prefix=True)
    if workload.request.cached_tokens(setup.block_size):
        steps.append(("sharing prefixes", shared, False))
    smaller_kv = shared
    if setup.kv_cache_dtype not in ("int8", "fp8"):
        smaller_kv = replace(shared, kv_cache_dtype="int8")
        steps.append(("KV in int8", smaller_kv, True))
    smaller = smaller_kv
    if _may_have_int4(model, setup) and no_int4(model, setup) is None:
        smaller = replace(smaller_kv, weight_format="int4")
        steps.append(("weights in int4", smaller, True))
    if setup.max_num_seqs is not None and setup.max_num_seqs < MOST_SEQUENCES:
        steps.append(("a larger batch", replace(smaller, max_num_seqs=None), False))
    found: list[Stage] = []
    for name, own, is_gated in steps:
        outcome = evaluate(model, accelerator, workload, own, efficiency)
        freed = 0
        if found:
            before = found[-1].outcome.fit
            requests = max(before.requests, 1)
            freed = before.needed_bytes(requests) - outcome.fit.needed_bytes(requests)
        found.append(Stage(name, own, outcome, freed, is_gated))
    return found


def no_int4(model: ModelSizes, setup: Setup) -> str | None:
    """Why int4 weights are no stage of a model that they would be one of."""
    if not _may_have_int4(model, setup):
        return None
    try:
        format_of(model, "int4")
    except ConfigError as error:
        return f"weights in int4 are left out: {error}"
    return None


def _may_have_int4(model: ModelSizes, setup: Setup) -> bool:
    return setup.weight_format == "auto" and model.stored_format is None
