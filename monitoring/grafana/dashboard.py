"""Writes the JSON of each dashboard: `python -m monitoring.grafana.dashboard`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.grafana.cost import COST
from monitoring.grafana.kv_pressure import KV_PRESSURE
from monitoring.grafana.overview import OVERVIEW
from monitoring.grafana.panels import Dashboard, Panel, gauge

DASHBOARDS = (OVERVIEW, KV_PRESSURE, COST)
FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}

_COLUMNS = 24
_HEIGHTS = {"stat": 4, "timeseries": 8}
_LINKS = {
    "type": "dashboards",
    "title": "Octavo",
    "icon": "dashboard",
    "tooltip": "",
    "tags": ["octavo"],
    "asDropdown": False,
    "targetBlank": False,
    "includeVars": True,
    "keepTime": True,
}


@dataclass(frozen=True, slots=True)
class Event:
    """A line on every panel; the value of its query is when it was."""

    name: str
    color: str
    expr: str
    title: str
    text: str


_STARTED = gauge("octavo_engine_start_timestamp_seconds")
_SERVED = gauge("octavo_quality_gate")
EVENTS = (
    Event(
        "Deploys",
        "blue",
        f"1000 * {_STARTED} * on (instance, model) group_left (engine_version, checkpoint, device) "
        + gauge("octavo_engine_info"),
        "{{instance}} started",
        "Octavo {{engine_version}}, {{checkpoint}}, on {{device}}",
    ),
    # A form that the server had not served in the hour before: nothing changes while an engine
    # lives, so it began when the engine did.
    Event(
        "Formats",
        "purple",
        f"1000 * ({_SERVED} unless on (instance, model, weights, activations, lm_head, kv) "
        f"last_over_time({_SERVED}[1h] offset 10m)) * on (instance, model) group_left {_STARTED}",
        "{{instance}} serves another format",
        "weights {{weights}}, activations {{activations}}, lm_head {{lm_head}}, KV {{kv}}; "
        "quality gate: {{gate}}",
    ),
)


def rendered(dashboard: Dashboard) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row_number, (title, row) in enumerate(dashboard.rows.items()):
        panels.append(
            {
                "id": 1000 + row_number,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        top += 1
        width = _COLUMNS // len(row)
        for i, panel in enumerate(row):
            place = {"x": i * width, "y": top, "w": width, "h": _HEIGHTS[panel.kind]}
            panels.append(_panel(panel, place))
        top += max(_HEIGHTS[panel.kind] for panel in row)
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["octavo", "llm", "triton"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": f"now-{dashboard.span}", "to": "now"},
        "links": [_LINKS],
        "annotations": {"list": [_annotation(each) for each in EVENTS]},
        "templating": {"list": [_variable("model"), _variable("instance")]},
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": value} for color, value in panel.thresholds],
        },
    }
    if panel.minimum is not None:
        defaults["min"] = panel.minimum
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    return {
        "id": panel.id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for i, query in enumerate(panel.queries)
        ],
    }


def _annotation(event: Event) -> dict[str, Any]:
    return {
        "name": event.name,
        "enable": True,
        "iconColor": event.color,
        "datasource": DATASOURCE,
        "target": {"refId": "Anno", "expr": event.expr},
        "titleFormat": event.title,
        "textFormat": event.text,
        "tagKeys": "model,instance",
        "useValueForTime": True,  # in milliseconds
    }


def _variable(label: str) -> dict[str, Any]:
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values(octavo_engine_up, {label})",
        "refresh": 2,  # when the time range changes
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text(dashboard: Dashboard) -> str:
    return json.dumps(rendered(dashboard), indent=2, ensure_ascii=False) + "\n"


def file(dashboard: Dashboard) -> Path:
    return FOLDER / f"{dashboard.uid}.json"


if __name__ == "__main__":
    for each in DASHBOARDS:
        file(each).write_text(text(each), encoding="utf-8")
