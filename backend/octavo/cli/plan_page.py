"""`octavo plan contracts --html`: one page that needs nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from octavo.cli import plan_contract_tables as tables
from octavo.cli.plan_contracts import Compared
from octavo.cli.plan_output import usd
from octavo.cli.plan_plots import svgs
from octavo.planner.comparison import SWING


def page(compared: Compared) -> str:
    """HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("plan_contracts.html").render(
        compared=compared,
        headline=tables.headline(compared),
        verdict=tables.verdict(compared),
        floor=tables.floor_sentence(compared) if compared.simulated else None,
        break_evens=[tables.break_even_sentence(each) for each in compared.break_evens],
        plots={name: Markup(svg) for name, svg in svgs(compared).items()},
        usd=usd,
        machines=tables.machines,
        swing_range=tables.swing_range,
        swing=f"{SWING:.0%}",
    )
