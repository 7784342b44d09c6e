"""What `octavo plan contracts` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from octavo.cli.plan_contracts import Compared
from octavo.cli.plan_output import NONE, plain_table, usd
from octavo.planner.comparison import SWING, BreakEven, Swing
from octavo.planner.contracts import Contract
from octavo.planner.cost import MONTH_HOURS


def show(console: Console, compared: Compared) -> None:
    console.print(headline(compared), style="bold", soft_wrap=True)
    for warning in compared.warnings:
        console.print(f"Warning: {warning}.", style="yellow", soft_wrap=True)
    console.print()
    _print(console, _contracts(compared))
    console.print()
    console.print(verdict(compared), style="bold", soft_wrap=True)
    if compared.simulated:
        console.print(floor_sentence(compared), soft_wrap=True)
    if compared.break_evens:
        console.print()
        console.print("Break-even", style="bold")
        for each in compared.break_evens:
            console.print(f"  {break_even_sentence(each)}", soft_wrap=True)
    console.print()
    _print(console, _swings(compared))
    console.print()
    for note in compared.notes:
        console.print(f"Note: {note}", style="dim", soft_wrap=True)


def _print(console: Console, table: Table) -> None:
    """As wide as it is: a narrow console would cut off names."""
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def headline(compared: Compared) -> str:
    total, hours = compared.traffic.total, compared.traffic.hours
    per_month = MONTH_HOURS / hours
    recorded = ""
    if compared.slo_ratio is not None:
        recorded = f"; recorded in {hours:,.3g} h, {compared.slo_ratio:.1%} met the SLO"
    return (
        f"{compared.model} on {compared.machine.name}, a month of "
        f"{total.requests * per_month:,.0f} requests: "
        f"{_millions(total.prompt_tokens * per_month)} prompt tokens "
        f"({_share(total.cached_tokens, total.prompt_tokens)} cached), "
        f"{_millions(total.output_tokens * per_month)} output tokens{recorded}"
    )


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f} M" if tokens >= 1e8 else f"{tokens / 1e6:,.3g} M"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _contracts(compared: Compared) -> Table:
    table = plain_table(
        "Contract", "$ a month", "$ per M good", "worst month", "machines, committed–most"
    )
    for each in compared.found:
        table.add_row(
            each.name, usd(each.usd_per_month), usd(each.usd_per_million_good_tokens),
            usd(compared.worst[each.name]), machines(each),
        )  # fmt: skip
    return table


def machines(each: Contract) -> str:
    if each.committed_machines == each.most_machines:
        return f"{each.most_machines}" if each.most_machines else NONE
    return f"{each.committed_machines}–{each.most_machines}"


def verdict(compared: Compared) -> str:
    first = compared.found[0]
    if len(compared.found) == 1:
        return f"Only {first.name} has a price; give others to compare with."
    second = compared.found[1]
    saved = _saved(first.usd_per_month, second.usd_per_month)
    less = f"{saved:.0%} less than" if saved >= 0.005 else "less than 1% below"
    if saved < 1e-9:
        less = "as much as"
    fragile = [swing.figure for swing in compared.swings if swing.cheapest() != {first.name}]
    steady = f"a swing of {SWING:.0%} in no single figure changes that"
    if fragile:
        steady = f"but a swing of {SWING:.0%} changes that in: {', '.join(fragile)}"
    return (
        f"Cheapest: {first.name}, {usd(first.usd_per_month)} a month, {less} {second.name}; "
        f"{steady}."
    )


def _saved(usd: float, than_usd: float) -> float:
    """The share of `than_usd` that paying `usd` saves."""
    return 1 - usd / than_usd if than_usd else 0.0


def floor_sentence(compared: Compared) -> str:
    terms = compared.terms
    rule = _floor(compared.rule_floor)
    if terms.floor_usd_per_hour is None:
        rule += " (nothing to commit to has a price)"
    return (
        f"Hybrid: the newsvendor rule takes {rule}; a machine above it is "
        f"{usd(terms.burst_usd_per_hour)} an hour.{_other_floor(compared)}{_simulated(compared)}"
    )


def _floor(machines: int) -> str:
    return f"a floor of {machines}" if machines else "no floor"


def _other_floor(compared: Compared) -> str:
    """Why it is not the rule's, where it is not."""
    if compared.floor == compared.rule_floor:
        return ""
    return (
        f" The rule leaves out what starts cost ({compared.terms.start_s:g} s each, or the lull if "
        f"that is shorter); with them {_floor(compared.floor)} is the cheapest and is taken."
    )


def _simulated(compared: Compared) -> str:
    own = next(each for each in compared.simulated if each.floor == compared.floor)
    best = min(compared.simulated, key=lambda each: each.usd_per_month)
    saved = _saved(best.usd_per_month, own.usd_per_month)
    agrees = "and no other that was tried costs less"
    if best.floor != own.floor and saved > 1e-9:
        agrees = "and no other that was tried costs even 0.1% less"
        if saved >= 0.001:
            agrees = f"though {_floor(best.floor)} costs {saved:.1%} less"
    if len(compared.simulated) == 1:
        agrees = "and there is no other to try"
    luck = (
        f" with interruptions ({own.interruptions:,.3g} a month)"
        if compared.terms.uses_spot
        else ""
    )
    spread = f" ± {usd(own.deviation_usd)}" if compared.terms.uses_spot else ""
    return f" Simulated{luck}: {usd(own.usd_per_month)}{spread} a month, {agrees}."


def break_even_sentence(each: BreakEven) -> str:
    if each.unit == "ratio":
        return f"{each.value:.0%}: {each.text}."
    if each.value in (0.0, float("inf")):
        return f"{each.text}."
    if each.unit == "months":
        return f"{each.value:,.3g} months: {each.text}."
    return f"{_millions(each.value)} {each.unit}: {each.text}."


def _swings(compared: Compared) -> Table:
    names = [each.name for each in compared.found]
    table = plain_table(f"If wrong by {SWING:.0%}", *names)
    for swing in compared.swings:
        table.add_row(swing.figure, *(swing_range(swing, name) for name in names))
    return table


def swing_range(swing: Swing, name: str) -> str:
    """Empty if the contract does not depend on the figure."""
    low, high = sorted((swing.lower[name], swing.higher[name]))
    return "" if low == high else f"{usd(low)} – {usd(high)}"
