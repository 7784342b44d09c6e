"""The files of monitoring/, without a server."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.grafana import dashboard
from octavo.config import SLO, load_config
from octavo.stats import LATENCY_BUCKETS_S
from tests.monitoring.prometheus import ROOT, SHIPPED, binary
from tests.monitoring.shipped import DASHBOARDS, panels, rules

MODEL = ROOT / "model_repository" / "llm"
PROVISIONING = ROOT / "monitoring" / "grafana" / "provisioning"
UNIT_TESTS = Path(__file__).parent / "alerts_test.yml"


def promtool(*arguments: str | Path) -> None:
    command = [binary("promtool"), *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    promtool("check", "rules", SHIPPED / "recording.yml", SHIPPED / "alerts.yml")


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", UNIT_TESTS)


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        case
        for test in yaml.safe_load(UNIT_TESTS.read_text("utf-8"))["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules("alerts.yml", "alert")}
    assert {case["alertname"] for case in cases if "exp_alerts" in case} == names
    assert {case["alertname"] for case in cases if "exp_alerts" not in case} == names


def test_every_alert_leads_to_its_runbook() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/container.md").read_text("utf-8"), re.M)
    for rule in rules("alerts.yml", "alert"):
        assert rule["alert"] in headings
        assert rule["annotations"]["runbook"] == f"docs/container.md#{rule['alert'].lower()}"


def test_limits_of_alerts_are_those_of_the_shipped_settings() -> None:
    slo = load_config(MODEL / "1" / "engine.toml", {}).slo
    (bound,) = {
        int(number)
        for file in (MODEL / "config.pbtxt", MODEL / "configs" / "vllm.pbtxt")
        for number in re.findall(r"max_queue_size: (\d+)", file.read_text("utf-8"))
    }
    limits = {
        rule["alert"]: float(re.split(r"[<>]=?", rule["expr"])[-1])
        for rule in rules("alerts.yml", "alert")
        if rule["alert"] in ("OctavoSlowFirstToken", "OctavoSlowTokens", "OctavoQueueFull")
    }
    assert limits == {
        "OctavoSlowFirstToken": slo.ttft_s,
        "OctavoSlowTokens": slo.tpot_s,
        "OctavoQueueFull": bound,
    }


def test_slo_is_a_bound_of_a_bucket() -> None:
    """Else a quantile near it would be interpolated across it."""
    assert {SLO().ttft_s, SLO().tpot_s} <= set(LATENCY_BUCKETS_S)


def test_dashboard_is_what_its_script_writes() -> None:
    assert dashboard.FILE.read_text("utf-8") == dashboard.text(), "run dashboard.py"


def test_ids_of_panels_are_unique() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


def test_panels_fill_the_grid_without_overlap() -> None:
    places = [cells(panel["gridPos"]) for panel in panels()]
    assert max(x for place in places for x, _ in place) == 23
    for one, other in itertools.combinations(places, 2):
        assert not one & other


def test_dashboards_ask_the_datasource_that_is_provisioned() -> None:
    file = PROVISIONING / "datasources" / "prometheus.yml"
    (datasource,) = yaml.safe_load(file.read_text("utf-8"))["datasources"]
    provisioned = {"type": datasource["type"], "uid": datasource["uid"]}
    asked = [
        each["datasource"]
        for path in DASHBOARDS.glob("*.json")
        for each in nodes(json.loads(path.read_text("utf-8")))
        if "datasource" in each
    ]
    assert asked
    assert all(each == provisioned for each in asked)


def test_datasource_knows_the_scrape_interval() -> None:
    """Grafana's $__rate_interval comes from it."""
    file = PROVISIONING / "datasources" / "prometheus.yml"
    (datasource,) = yaml.safe_load(file.read_text("utf-8"))["datasources"]
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text("utf-8"))
    assert datasource["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


@pytest.mark.parametrize("variable", ["model", "instance"])
def test_every_query_heeds_the_chosen_servers(variable: str) -> None:
    for panel in panels():
        for query in panel.get("targets", []):
            selectors = re.findall(r"(?:octavo|nv)_\w+(\{[^}]*\})?", query["expr"])
            assert selectors
            chosen = re.compile(rf'{variable}=~"\(?\${variable}\b')
            assert all(chosen.search(each) for each in selectors), query


def cells(place: dict[str, int]) -> set[tuple[int, int]]:
    return set(
        itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    )


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, (dict, list)):
            yield from nodes(child)
