"""The reports: everything is in them, nothing is from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from octavo.planner.roofline import Peaks, Work
from octavo.playbook import report
from octavo.playbook.roofline_plot import RooflinePoint, roofline_plot
from octavo.playbook.verdict import sentence
from tests.playbook.findings import MACHINE, RATES, SETTLED, findings


class Page(HTMLParser):
    """Fails on what is not closed, and keeps text and references."""

    _EMPTY = ("meta", "line", "circle", "polyline", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self._EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self._EMPTY

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Page(report.page(findings(weights="fail")))
    assert page.references and set(page.references) == {"quality/kv-int8/report.html"}
    assert "http" not in report.page(findings())
    for part in (sentence(findings(weights="fail")), "0b contiguous", "good req/s", "GB/s read",
                 "30 to 50 % lower cost", "closed loop", "held<out>.jsonl"):  # fmt: skip
        assert part in page.text, part


def test_names_are_escaped() -> None:
    found = replace(findings(), settled=replace(SETTLED, model="/models/<b>toy"))
    assert "<b>toy" in Page(report.page(found)).text
    assert "<b>" not in report.page(found)


@pytest.mark.parametrize("options", [
    {}, {"kv": "fail"}, {"weights": "fail"}, {"kv": "no signal", "weights": "no signal"},
    {"rates": {**RATES, "paged": 1}}, {"rates": {**RATES, "weights-int4": 0}},
])  # fmt: skip
def test_bars_fall_from_the_whole_to_what_is_left(options: dict[str, Any]) -> None:
    found = findings(**options)
    bars = report.bars(found)
    for bar in bars:
        assert bar.left >= 0 and bar.left + bar.width <= 100 + 1e-9
    first, *middle, last = bars
    assert first.kind == last.kind == "whole" and first.text == "100 %"
    end = first.width
    for bar in middle:
        if bar.kind == "refused":
            continue
        if bar.kind == "lost":
            assert bar.left == pytest.approx(end)
            end = bar.left + bar.width
        else:
            assert bar.left + bar.width == pytest.approx(end)
            end = bar.left
    assert last.width == pytest.approx(end)
    kinds = {bar.label: bar.kind for bar in middle}
    if options.get("weights") == "fail":
        assert kinds["5 int4 weights"] == "refused"
    if options.get("weights") == "no signal":
        assert kinds["4 int8 KV"] == kinds["5 int4 weights"] == "open"


def test_without_0b_there_are_no_bars() -> None:
    page = report.page(findings({**RATES, "contiguous": 0}))
    assert 'class="bar"' not in page and "met the SLO for no request" in page


def test_without_peaks_there_is_no_roofline() -> None:
    found = replace(findings(), machine=replace(MACHINE, peaks=None))
    assert "<svg" not in report.page(found) and "peaks are not probed" in report.page(found)
    assert report.page(findings()).count("<svg") == 1


def test_files(tmp_path: Path) -> None:
    found = findings(usd_per_hour=3.6)
    files = report.write(found, tmp_path)
    assert [file.name for file in files] == ["playbook.json", "playbook.md", "playbook.html"]
    whole = json.loads(files[0].read_text(encoding="utf-8"))
    assert whole["verdict"] == sentence(found) and len(whole["stages"]) == 7
    assert whole["stages"][4]["cost"]["usd"] == pytest.approx(100.0)
    assert whole["waterfall"][0]["stage"] == "paged"
    assert len(whole["samples"]) == 7 and whole["settled"]["model"] == "toy"
    text = files[1].read_text(encoding="utf-8")
    assert "$100.00 (20%)" in text and "| 30 to 50 % lower cost |" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_points_lie_under_the_roof() -> None:
    peaks = Peaks(read_bytes_per_s=20e9, flops_per_s=400e9)
    work = Work(bytes=1e6, flops=4e6)
    # The memory's floor is 50 µs: in 100 µs it has half of what the roof allows.
    point = RooflinePoint("0b contiguous", work, 100e-6)
    assert point.describe(peaks) == (
        "0b contiguous: 4.0 FLOPs per byte, 40.0 GFLOP/s, 50% of the roof (memory)"
    )
    svg = roofline_plot([point], peaks)
    (circle,) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    (roof,) = re.findall(r'class="roof" points="([^"]+)"', svg)
    corners = [tuple(map(float, corner.split(","))) for corner in roof.split()]
    (x1, y1), (x2, y2), (_, y3) = corners
    assert y2 == pytest.approx(y3, abs=0.2) and x1 < float(circle[0]) < x2
    on_roof = y1 + (y2 - y1) * (float(circle[0]) - x1) / (x2 - x1)
    assert float(circle[1]) > on_roof  # downwards
