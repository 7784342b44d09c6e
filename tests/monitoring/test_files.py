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
from octavo.config import SLO
from octavo.planner.prices import MAX_AGE_DAYS
from octavo.stats import LATENCY_BUCKETS_S
from tests.monitoring.prometheus import ROOT, SHIPPED, binary
from tests.monitoring.shipped import DASHBOARDS, dashboards, events, panels, rules

MODEL = ROOT / "model_repository" / "llm"
PROVISIONING = ROOT / "monitoring" / "grafana" / "provisioning"
UNIT_TESTS = sorted(Path(__file__).parent.glob("*_test.yml"))
RUNBOOKS = "docs/runbooks.md"


def promtool(*arguments: str | Path) -> None:
    command = [binary("promtool"), *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    promtool("check", "rules", SHIPPED / "recording.yml", SHIPPED / "alerts.yml")


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", *UNIT_TESTS)


def test_every_alert_is_tested_both_ways() -> None:
    cases = [case for test in unit_tests() for case in test.get("alert_rule_test", [])]
    alerting = {
        (rule["alert"], rule["labels"]["severity"]) for rule in rules("alerts.yml", "alert")
    }
    fired = {
        (case["alertname"], alert["exp_labels"]["severity"])
        for case in cases
        for alert in case.get("exp_alerts", [])
    }
    assert fired == alerting
    silent = {case["alertname"] for case in cases if "exp_alerts" not in case}
    assert silent == {name for name, _ in alerting}


def test_every_recorded_series_is_tested() -> None:
    tested = " ".join(
        case["expr"] for test in unit_tests() for case in test.get("promql_expr_test", [])
    )
    for rule in rules("recording.yml", "record"):
        assert re.search(rf"{rule['record']}\b", tested), rule["record"]


def test_every_alert_leads_to_its_runbook() -> None:
    page = (ROOT / RUNBOOKS).read_text("utf-8")
    names = [rule["alert"] for rule in rules("alerts.yml", "alert")]
    assert sorted(set(names)) == sorted(re.findall(r"^### (\w+)$", page, re.M))
    assert sorted(set(names)) == sorted(re.findall(r"^\| \[(\w+)\]", page, re.M))
    for rule in rules("alerts.yml", "alert"):
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOKS}#{rule['alert'].lower()}"


def test_runbooks_name_panels_that_exist() -> None:
    page = (ROOT / RUNBOOKS).read_text("utf-8")
    titles = {panel["title"] for panel in panels()} | {
        each["title"] for each in dashboards().values()
    }
    named = {" ".join(each.split()) for each in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", page)}
    assert named
    assert named <= titles


def test_limits_of_alerts_are_those_of_the_shipped_settings() -> None:
    (bound,) = {
        int(number)
        for file in (MODEL / "config.pbtxt", MODEL / "configs" / "vllm.pbtxt")
        for number in re.findall(r"max_queue_size: (\d+)", file.read_text("utf-8"))
    }
    expressions = {rule["alert"]: rule["expr"] for rule in rules("alerts.yml", "alert")}
    assert float(expressions["OctavoQueueFull"].split(">=")[-1]) == bound
    assert f"> {MAX_AGE_DAYS} * 86400" in expressions["OctavoPriceStale"]
    (age,) = [panel for panel in panels() if panel["title"] == "Age of the price"]
    steps = age["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[-1]["value"] == MAX_AGE_DAYS * 86400


def test_slo_is_a_bound_of_a_bucket() -> None:
    """Else a quantile near it would be interpolated across it."""
    assert {SLO().ttft_s, SLO().tpot_s} <= set(LATENCY_BUCKETS_S)


def test_dashboards_are_what_their_script_writes() -> None:
    written = {dashboard.file(each).name: dashboard.text(each) for each in dashboard.DASHBOARDS}
    shipped = {file.name: file.read_text("utf-8") for file in DASHBOARDS.glob("*.json")}
    assert shipped == written, "run dashboard.py"


@pytest.mark.parametrize("name", dashboards())
def test_ids_of_panels_are_unique(name: str) -> None:
    ids = [panel["id"] for panel in dashboards()[name]["panels"]]
    assert len(ids) == len(set(ids))


def test_an_id_is_the_same_panel_on_every_dashboard() -> None:
    seen: dict[int, dict[str, Any]] = {}
    for panel in panels():
        if panel["type"] != "row":
            own = panel | {"gridPos": None}
            assert seen.setdefault(panel["id"], own) == own


@pytest.mark.parametrize("name", dashboards())
def test_panels_fill_the_grid_without_overlap(name: str) -> None:
    shown = dashboards()[name]["panels"]
    places = [cells(panel["gridPos"]) for panel in shown]
    assert max(x for place in places for x, _ in place) == 23
    for one, other in itertools.combinations(places, 2):
        assert not one & other
    # Wide enough to be read.
    assert all(panel["gridPos"]["w"] >= 8 for panel in shown if panel["type"] == "timeseries")


def test_deploys_and_formats_are_marked_where_they_began(tmp_path: Path) -> None:
    """A server starts at 0 s, at 3900 s as it was, and at 8400 s with int8 KV memory."""
    server, what = (
        'model="llm", instance="a"',
        'engine_version="1", checkpoint="tiny", device="cpu"',
    )
    form = 'gate="pass", weights="int4", activations="float32", lm_head="int8"'
    series = {
        f"octavo_engine_start_timestamp_seconds{{{server}}}": (
            "0x59 stale _x4 3900x69 stale _x4 8400x30"
        ),
        f"octavo_engine_info{{{server}, {what}}}": "1x59 stale _x4 1x69 stale _x4 1x30",
        f'octavo_quality_gate{{{server}, {form}, kv="float32"}}': "1x59 stale _x4 1x69 stale",
        f'octavo_quality_gate{{{server}, {form}, kv="int8"}}': "_x140 1x30",
    }
    deploy, int8 = f"{{{server}, {what}}}", f'{{{server}, {form}, kv="int8"}}'
    unquantized = int8.replace('kv="int8"', 'kv="float32"')
    seen: dict[str, dict[str, tuple[str, int] | None]] = {
        "Deploys": {
            "30m": (deploy, 0), "62m": None, "100m": (deploy, 3_900_000),
            "160m": (deploy, 8_400_000),
        },
        "Formats": {
            "5m": (unquantized, 0), "30m": None, "66m": None, "100m": None,
            "141m": (int8, 8_400_000), "160m": None,
        },
    }  # fmt: skip
    asked = {event.name: event.text for event in events()}
    assert set(asked) == set(seen)
    cases = [
        {
            "expr": asked[name],
            "eval_time": at,
            "exp_samples": [{"labels": event[0], "value": event[1]}] if event else [],
        }
        for name, moments in seen.items()
        for at, event in moments.items()
    ]
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": cases}
    file = tmp_path / "events.yml"
    file.write_text(yaml.safe_dump({"tests": [test]}, width=1000), "utf-8")
    promtool("test", "rules", file)


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
    expressions = [query["expr"] for panel in panels() for query in panel.get("targets", [])]
    for each in dashboards().values():
        expressions += [event["target"]["expr"] for event in each["annotations"]["list"]]
    for expr in expressions:
        selectors = re.findall(r"((?:model:)?(?:octavo|nv)_[\w:]+)(\{[^}]*\})?", expr)
        assert selectors
        chosen = re.compile(rf'{variable}=~"\(?\${variable}\b')
        for metric, labels in selectors:
            # What is recorded is of all servers of a model.
            if variable == "model" or not metric.startswith("model:"):
                assert chosen.search(labels), expr


def unit_tests() -> list[dict[str, Any]]:
    return [
        test for file in UNIT_TESTS for test in yaml.safe_load(file.read_text("utf-8"))["tests"]
    ]


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
