"""What a month of traffic costs under each contract.

Own machines are counted in whole ones, for each stretch of the traffic as many as its work needs.
What is committed to is paid for always; what is not, only while it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.planner import cost
from octavo.planner.cost import HOUR_S, MONTH_HOURS
from octavo.planner.lulls import Alike, hours_above, paid_hours
from octavo.planner.traffic import Traffic, Volume


@dataclass(frozen=True, slots=True)
class EngineTime:
    """Of one engine, by token: of prompts that no cache had, and of output."""

    prefill_s: float
    decode_s: float

    def of(self, volume: Volume) -> float:
        fresh = volume.prompt_tokens - volume.cached_tokens
        return fresh * self.prefill_s + volume.output_tokens * self.decode_s


@dataclass(frozen=True, slots=True)
class TokenTerms:
    input_cost_per_token: float
    output_cost_per_token: float
    cache_read_input_token_cost: float | None = None


@dataclass(frozen=True, slots=True)
class OnPremise:
    """Of one machine. yearly_operation_usd: space, staff, maintenance"""

    capital_usd: float
    amortisation_years: float
    power_kw: float
    usd_per_kwh: float
    pue_ratio: float = 1.0
    yearly_operation_usd: float = 0.0

    @property
    def usd_per_hour(self) -> float:
        return cost.on_premise_usd_per_hour(
            self.capital_usd, self.amortisation_years, self.power_kw, self.usd_per_kwh,
            pue_ratio=self.pue_ratio, yearly_operation_usd=self.yearly_operation_usd,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spot:
    """availability_ratio: of the time, that there is any; else the machine is on demand"""

    usd_per_hour: float
    interruptions_per_hour: float
    availability_ratio: float = 0.9
    drain_s: float = 120.0
    reload_s: float = 300.0
    lost_s: float = 180.0

    @property
    def effective_usd_per_hour(self) -> float:
        return cost.spot_effective_usd_per_hour(
            self.usd_per_hour, self.interruptions_per_hour,
            drain_s=self.drain_s, reload_s=self.reload_s, lost_s=self.lost_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Terms:
    """What is offered; None: nothing. Dollars are of one machine.

    engines: of a machine; load_ratio: of their capacity that is planned for
    start_s: from asking for a machine on demand until it serves
    least_machines: that stay up with no traffic
    """

    engine: EngineTime
    engines: int
    on_demand_usd_per_hour: float
    reserved_usd_per_hour: float | None = None
    spot: Spot | None = None
    on_premise: OnPremise | None = None
    api: TokenTerms | None = None
    load_ratio: float = 0.7
    start_s: float = 300.0
    least_machines: int = 1

    @property
    def floor_usd_per_hour(self) -> float | None:
        """Of the cheapest commitment."""
        offers = [self.reserved_usd_per_hour]
        if self.on_premise is not None:
            offers.append(self.on_premise.usd_per_hour)
        return min((each for each in offers if each is not None), default=None)

    @property
    def has_hybrid(self) -> bool:
        return self.spot is not None or self.floor_usd_per_hour is not None

    def floor_usd(self, machines: int, hours: float) -> float:
        """Raises ValueError for a floor that no offer is there for."""
        if not machines:
            return 0.0
        if self.floor_usd_per_hour is None:
            raise ValueError(f"floor = {machines}: nothing to commit to has a price")
        return machines * self.floor_usd_per_hour * hours

    @property
    def start_hours(self) -> float:
        return self.start_s / HOUR_S

    @property
    def uses_spot(self) -> bool:
        """Spot that loses more than it saves is left alone."""
        return self.spot is not None and (
            self.spot.effective_usd_per_hour < self.on_demand_usd_per_hour
        )

    @property
    def burst_usd_per_hour(self) -> float:
        """Of a machine above the floor, in the mean of spot and on demand."""
        if self.spot is None or not self.uses_spot:
            return self.on_demand_usd_per_hour
        share = self.spot.availability_ratio
        return share * self.spot.effective_usd_per_hour + (1 - share) * self.on_demand_usd_per_hour


@dataclass(frozen=True, slots=True)
class Committed:
    """Machines for all of the time: below a hybrid, and for the peak where there is no other."""

    floor: int
    peak: int


@dataclass(frozen=True, slots=True)
class Contract:
    """What it comes to. machines: committed to (for an API none), and the most at once"""

    name: str
    usd_per_month: float
    usd_per_million_good_tokens: float
    committed_machines: int
    most_machines: int


def machines_needed(traffic: Traffic, terms: Terms) -> list[int]:
    """In each stretch."""
    capacity_s = traffic.bucket_hours * HOUR_S * terms.engines * terms.load_ratio
    return [
        max(terms.least_machines, math.ceil(terms.engine.of(each) / capacity_s - 1e-9))
        for each in traffic.buckets
    ]


def newsvendor_floor(needed: Sequence[int], terms: Terms) -> int:
    """The rule's machines to commit to: the least that demand exceeds with no greater probability
    than floor / burst price. 0 without an offer that is cheaper than bursting."""
    floor_usd, burst_usd = terms.floor_usd_per_hour, terms.burst_usd_per_hour
    if floor_usd is None or floor_usd >= burst_usd:
        return 0
    quantile = cost.newsvendor_quantile(floor_usd, burst_usd)
    at = min(len(needed) - 1, max(0, math.ceil(quantile * len(needed) - 1e-9) - 1))
    return sorted(needed)[at]


def cheapest_floor(needed: Sequence[int], bucket_hours: float, terms: Terms) -> int:
    """Machines to commit to once starts are paid for, which the newsvendor's rule knows nothing of:
    all that cost less committed to than above a floor. The rule's, if it costs as little."""
    floor_usd, rule = terms.floor_usd_per_hour, newsvendor_floor(needed, terms)
    if floor_usd is None:
        return 0
    hours, paid = bucket_hours * len(needed), paid_hours(needed, bucket_hours, terms.start_hours)
    above_usd = terms.burst_usd_per_hour
    floor = sum(each.machines for each in paid if each.hours * above_usd > floor_usd * hours)
    usd, by_rule = (hybrid_usd(paid, each, hours, terms) for each in (floor, rule))
    return floor if usd < by_rule * (1 - 1e-9) else rule


def hybrid_usd(paid: Sequence[Alike], floor: int, hours: float, terms: Terms) -> float:
    """A floor that is committed to for so many hours, and spot with on demand behind it above.

    paid: of all machines, by lulls.paid_hours
    """
    return terms.floor_usd(floor, hours) + terms.burst_usd_per_hour * hours_above(paid, floor)


def committed(traffic: Traffic, terms: Terms) -> Committed:
    needed = machines_needed(traffic, terms)
    return Committed(cheapest_floor(needed, traffic.bucket_hours, terms), max(needed))


def contracts(
    traffic: Traffic, terms: Terms, commitment: Committed | None = None
) -> list[Contract]:
    """Of each that is offered, the cheapest first.

    commitment: that was made before, for more than this traffic
    """
    needed, hours = machines_needed(traffic, terms), traffic.hours
    own = commitment or committed(traffic, terms)
    most, total = max(needed), traffic.total
    paid = paid_hours(needed, traffic.bucket_hours, terms.start_hours)
    found = [("on demand", terms.on_demand_usd_per_hour * hours_above(paid, 0), 0, most)]
    if terms.api is not None:
        usd = cost.api_usd(
            total.prompt_tokens, total.cached_tokens, total.output_tokens,
            input_cost_per_token=terms.api.input_cost_per_token,
            output_cost_per_token=terms.api.output_cost_per_token,
            cache_read_input_token_cost=terms.api.cache_read_input_token_cost,
        )  # fmt: skip
        found.append(("token API", usd, 0, 0))
    for name, usd_per_hour in (
        ("reserved", terms.reserved_usd_per_hour),
        ("on premise", None if terms.on_premise is None else terms.on_premise.usd_per_hour),
    ):
        if usd_per_hour is not None:
            found.append((name, own.peak * usd_per_hour * hours, own.peak, own.peak))
    if terms.has_hybrid:
        usd = hybrid_usd(paid, own.floor, hours, terms)
        found.append(("hybrid", usd, own.floor, max(own.floor, most)))
    per_month = MONTH_HOURS / hours
    good = total.answered_tokens
    return sorted(
        (
            Contract(
                name=name,
                usd_per_month=usd * per_month,
                usd_per_million_good_tokens=cost.usd_per_million(usd, good) if good else math.inf,
                committed_machines=committed,
                most_machines=machines,
            )
            for name, usd, committed, machines in found
        ),
        key=lambda each: each.usd_per_month,
    )
