"""What a comparison of contracts rests on: break-evens, sensitivity, the worst month."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from octavo.planner import cost
from octavo.planner.contracts import Terms, committed, contracts, machines_needed
from octavo.planner.cost import MONTH_HOURS
from octavo.planner.traffic import Traffic

SWING = 0.2
# Of today's traffic, where contracts are compared.
SCALES = tuple(2 ** (step / 4) for step in range(-16, 17))


@dataclass(frozen=True, slots=True)
class BreakEven:
    """value: in `unit`, from which (or up to which, as `text` says) it pays"""

    text: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Swing:
    """Dollars a month of each contract with one figure a fifth lower and a fifth higher."""

    figure: str
    lower: dict[str, float]
    higher: dict[str, float]

    def cheapest(self) -> set[str]:
        """At both ends."""
        return {min(end, key=lambda name: end[name]) for end in (self.lower, self.higher)}


def worst_month(traffic: Traffic, terms: Terms) -> dict[str, float]:
    """Dollars of each contract in the month that is its dearest, with what is committed to for all
    of the traffic. What is shorter than a month has a month of its dearest day."""
    months = traffic.months()
    if len(months) == 1 and traffic.hours < MONTH_HOURS:
        months = [traffic.dearest_day()]
    commitment = committed(traffic, terms)
    found = {each.name: each.usd_per_month for each in contracts(traffic, terms, commitment)}
    for month in months:
        for each in contracts(month, terms, commitment):
            found[each.name] = max(found[each.name], each.usd_per_month)
    return found


def sensitivity(traffic: Traffic, terms: Terms) -> list[Swing]:
    """Of each figure that is a guess or can change."""

    def costs(own: Traffic, terms: Terms) -> dict[str, float]:
        return {each.name: each.usd_per_month for each in contracts(own, terms)}

    figures: dict[str, Callable[[float], dict[str, float]]] = {
        "traffic": lambda f: costs(traffic.times(f), terms),
        "speed of an engine": lambda f: costs(
            traffic,
            replace(
                terms,
                engine=replace(
                    terms.engine,
                    prefill_s=terms.engine.prefill_s / f,
                    decode_s=terms.engine.decode_s / f,
                ),
            ),
        ),
        "price on demand": lambda f: costs(
            traffic, replace(terms, on_demand_usd_per_hour=terms.on_demand_usd_per_hour * f)
        ),
    }
    if terms.reserved_usd_per_hour is not None:
        reserved = terms.reserved_usd_per_hour
        figures["reserved price"] = lambda f: costs(
            traffic, replace(terms, reserved_usd_per_hour=reserved * f)
        )
    if terms.on_premise is not None:
        own = terms.on_premise
        figures["capital"] = lambda f: costs(
            traffic, replace(terms, on_premise=replace(own, capital_usd=own.capital_usd * f))
        )
    if terms.spot is not None:
        spot = terms.spot
        figures["spot price"] = lambda f: costs(
            traffic, replace(terms, spot=replace(spot, usd_per_hour=spot.usd_per_hour * f))
        )
        figures["interruptions"] = lambda f: costs(
            traffic,
            replace(
                terms,
                spot=replace(spot, interruptions_per_hour=spot.interruptions_per_hour * f),
            ),
        )
    if terms.api is not None:
        api = terms.api
        cached = api.cache_read_input_token_cost
        figures["API price"] = lambda f: costs(
            traffic,
            replace(
                terms,
                api=replace(
                    api,
                    input_cost_per_token=api.input_cost_per_token * f,
                    output_cost_per_token=api.output_cost_per_token * f,
                    cache_read_input_token_cost=None if cached is None else cached * f,
                ),
            ),
        )
    return [Swing(name, at(1 - SWING), at(1 + SWING)) for name, at in figures.items()]


def by_scale(traffic: Traffic, terms: Terms) -> list[tuple[float, dict[str, float]]]:
    """Dollars a month of each contract, at multiples of the traffic."""
    return [
        (
            scale,
            {each.name: each.usd_per_month for each in contracts(traffic.times(scale), terms)},
        )
        for scale in SCALES
    ]


def break_evens(traffic: Traffic, terms: Terms) -> list[BreakEven]:
    found: list[BreakEven] = []
    needed = machines_needed(traffic, terms)
    on_demand = terms.on_demand_usd_per_hour
    used = sum(needed) / (max(needed) * len(needed))
    if terms.reserved_usd_per_hour is not None and on_demand:
        ratio = cost.reserved_break_even_ratio(terms.reserved_usd_per_hour, on_demand)
        found.append(
            BreakEven(
                "a reserved machine costs less than on demand if it is needed for this share of "
                f"the hours or more; the peak's machines are needed for {used:.0%} of them",
                ratio,
                "ratio",
            )
        )
    if terms.on_premise is not None:
        own = terms.on_premise
        running = replace(own, capital_usd=0.0).usd_per_hour * max(needed) * MONTH_HOURS
        rented = next(c for c in contracts(traffic, terms) if c.name == "on demand").usd_per_month
        saved = rented - running
        if saved > 0:
            found.append(
                BreakEven(
                    "machines that are bought have paid for themselves, against on demand, after "
                    "so many months",
                    own.capital_usd * max(needed) / saved,
                    "months",
                )
            )
    if terms.api is not None:
        found += _api_break_even(traffic, terms)
    return found


def _api_break_even(traffic: Traffic, terms: Terms) -> list[BreakEven]:
    """The month's output tokens from which own machines cost less than the API: at all of SCALES
    beyond, and by halving between the last one at which they do not and the next. Between these
    whole machines make it a saw."""

    def own_is_cheaper(scale: float) -> bool:
        found = {each.name: each.usd_per_month for each in contracts(traffic.times(scale), terms)}
        api = found.pop("token API")
        return min(found.values()) < api

    cheaper = [own_is_cheaper(scale) for scale in SCALES]
    monthly = traffic.total.output_tokens * MONTH_HOURS / traffic.hours
    if all(cheaper) or not cheaper[-1]:
        which = "at every volume" if all(cheaper) else "at no volume"
        return [
            BreakEven(
                f"own machines cost less than the API {which} from {SCALES[0] * monthly:,.3g} to "
                f"{SCALES[-1] * monthly:,.3g} output tokens a month",
                0.0 if all(cheaper) else float("inf"),
                "output tokens a month",
            )
        ]
    last = max(index for index, each in enumerate(cheaper) if not each)
    low, high = SCALES[last], SCALES[last + 1]
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if own_is_cheaper(middle) else (middle, high)
    return [
        BreakEven(
            "own machines cost less than the API from about so much on, at the same shape",
            high * monthly,
            "output tokens a month",
        )
    ]
