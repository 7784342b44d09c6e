"""Which machine is the cheapest, and which change to make next."""

from __future__ import annotations

from octavo.planner.stages import Stage


def next_change(found: list[Stage], costs: list[float | None]) -> str | None:
    """The first stage of the playbook's order, behind those that the engine has on by default,
    that makes a million good tokens at least 5 % cheaper than all before it, or the first with
    which the model fits and meets the SLO. Quantization is named only behind paging and sharing."""
    best: float | None = None
    for stage, usd in zip(found, costs, strict=True):
        if usd is None:
            continue
        gate = "; measure its quality first: octavo gate" if stage.is_gated else ""
        if stage.name not in _ON_ALREADY:
            if best is None:
                return f"Next: {stage.name}: with it the model fits and meets the SLO{gate}."
            if usd < 0.95 * best:
                return f"Next: {stage.name}, {1 - usd / best:.0%} cheaper{gate}."
        best = usd if best is None else min(best, usd)
    return None


# The engine pages and shares unless it is told otherwise.
_ON_ALREADY = ("contiguous KV memory", "paging", "sharing prefixes")
