"""A real Prometheus scrapes the real server under load, by the shipped configuration."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from tests.e2e.target import Target
from tests.monitoring.conftest import USD_A_WEEK_AGO
from tests.monitoring.prometheus import Prometheus
from tests.monitoring.shipped import Expression, alerts, events, panel_expressions, recorded

pytestmark = pytest.mark.e2e


def named(expression: Expression) -> str:
    return expression.name


def test_server_is_scraped(watched: Prometheus, target: Target) -> None:
    ((labels, up),) = watched.query('up{job="octavo"}')
    assert up == 1
    assert labels["instance"] == f"127.0.0.1:{target.settings.ports.metrics}"


@pytest.mark.parametrize("expression", panel_expressions() + events(), ids=named)
def test_panel_has_data(watched: Prometheus, expression: Expression) -> None:
    series = watched.query(expression.text)
    assert series, f"no data: {expression.text}"
    assert not any(math.isnan(value) for _, value in series), f"no data: {expression.text}"


@pytest.mark.parametrize("expression", recorded(), ids=named)
def test_rule_records_what_it_says(watched: Prometheus, expression: Expression) -> None:
    series = watched.query(expression.name)
    assert series
    for labels, value in series:
        assert labels["model"] == "llm"
        assert value >= 0


@pytest.mark.parametrize("expression", alerts(), ids=named)
def test_alert_looks_at_metrics_that_exist(watched: Prometheus, expression: Expression) -> None:
    watched.query(expression.text)  # parses
    assert expression.metrics
    for metric in expression.metrics:
        assert watched.query(metric), f"no such metric: {metric}"


def test_no_rule_fails(watched: Prometheus) -> None:
    for group in watched.get("rules")["groups"]:
        for rule in group["rules"]:
            assert (rule["health"], rule.get("lastError")) == ("ok", None), rule


def test_load_shows_what_it_should(watched: Prometheus) -> None:
    """Else data could be zeros everywhere."""
    for grown in (
        'octavo_requests_total{finish_reason="length"}',
        'octavo_requests_total{finish_reason="cancelled"}',
        "octavo_invalid_requests_total",
        "octavo_preemptions_total",
        "octavo_kv_swapped_bytes_total",
        "octavo_good_tokens_total",
        'nv_inference_request_failure{reason="REJECTED"}',
        "max_over_time(nv_inference_pending_request_count[5m])",
        'octavo_slo_requests_total{outcome="met"}',
        "octavo_prefix_cache_hit_tokens_total",
        "model:octavo_usd_per_million_good_tokens:ratio_rate1d",
    ):
        assert sum(value for _, value in watched.query(grown)) > 0, grown


def test_cost_is_held_against_the_week_before(watched: Prometheus) -> None:
    alert = wait_for_alert(watched, "OctavoCostUp", "pending")
    ((_, usd),) = watched.query("model:octavo_usd_per_million_good_tokens:ratio_rate1h")
    assert float(alert["value"]) == pytest.approx(usd / USD_A_WEEK_AGO, rel=0.5)


def test_pressure_makes_its_alert_fire(watched: Prometheus, hurried: Prometheus) -> None:
    """More requests than KV memory has room for, since the quiet that `watched` has seen."""
    alert = wait_for_alert(hurried, "OctavoPreemptions", "firing")
    assert float(alert["value"]) > 1
    assert (alert["labels"]["model"], alert["labels"]["severity"]) == ("llm", "warning")
    assert alert["annotations"]["runbook_url"] == "docs/runbooks.md#octavopreemptions"


def wait_for_alert(prometheus: Prometheus, name: str, state: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + 60
    while True:
        now: list[dict[str, Any]] = prometheus.get("alerts")["alerts"]
        for alert in now:
            if (alert["labels"]["alertname"], alert["state"]) == (name, state):
                return alert
        assert time.monotonic() < deadline_s, now
        time.sleep(0.5)
