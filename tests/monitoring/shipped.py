"""The expressions in the files that are shipped."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests.monitoring.prometheus import ROOT, SHIPPED

DASHBOARDS = ROOT / "monitoring" / "grafana" / "dashboards"
# What Grafana puts in: its least interval for rates is four scrapes.
_VARIABLES = {"$__rate_interval": "20s", "$model": ".+", "$instance": ".+"}
_METRIC = re.compile(r"\b(?:up|(?:model:)?(?:octavo|nv)_[\w:]+)\b")


@dataclass(frozen=True)
class Expression:
    name: str
    text: str

    @property
    def metrics(self) -> set[str]:
        return set(_METRIC.findall(re.sub(r"\{[^}]*\}", "", self.text)))


def rules(file: str, kind: str) -> list[dict[str, Any]]:
    """`kind` is record or alert."""
    groups = yaml.safe_load((SHIPPED / file).read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def recorded() -> list[Expression]:
    return [Expression(rule["record"], rule["expr"]) for rule in rules("recording.yml", "record")]


def alerts() -> list[Expression]:
    return [
        Expression(f"{rule['alert']} {rule['labels']['severity']}", rule["expr"])
        for rule in rules("alerts.yml", "alert")
    ]


def dashboards() -> dict[str, dict[str, Any]]:
    """By the names of their files."""
    return {
        file.name: json.loads(file.read_text("utf-8")) for file in sorted(DASHBOARDS.glob("*.json"))
    }


def panels() -> list[dict[str, Any]]:
    """Of all dashboards; one that is on two of them is here twice."""
    return [panel for dashboard in dashboards().values() for panel in dashboard["panels"]]


def panel_expressions() -> list[Expression]:
    return list(
        {
            (panel["id"], query["refId"]): Expression(
                f"{panel['id']} {panel['title']} {query['refId']}", chosen_all(query["expr"])
            )
            for panel in panels()
            for query in panel.get("targets", [])
        }.values()
    )


def events() -> list[Expression]:
    """What is marked on every panel."""
    return list(
        {
            each["name"]: Expression(each["name"], chosen_all(each["target"]["expr"]))
            for dashboard in dashboards().values()
            for each in dashboard["annotations"]["list"]
        }.values()
    )


def chosen_all(expr: str) -> str:
    for variable, value in _VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr
