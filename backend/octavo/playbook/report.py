"""The result as JSON, as Markdown and as a page for people, which needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from octavo.benchmarks.machine import machine, versions
from octavo.playbook import stages
from octavo.playbook.claims import claims
from octavo.playbook.findings import Findings, Row
from octavo.playbook.roofline_plot import RooflinePoint, roofline_plot
from octavo.playbook.samples import DEFINITIONS
from octavo.playbook.tables import HEADINGS, cells, cost_text, price_line, quality_text
from octavo.playbook.verdict import sentence
from octavo.playbook.workload import WORKLOADS

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the waterfall, in percent of its width."""

    label: str
    switch: str
    left: float
    width: float
    text: str
    kind: str  # whole, saved, lost, open (saved, but not proven) or refused


def write(findings: Findings, out: Path) -> list[Path]:
    """The files. Raises OSError."""
    document = to_json(findings)
    texts = {
        "playbook.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "playbook.md": markdown(findings),
        "playbook.html": page(findings),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def to_json(findings: Findings) -> Mapping[str, Any]:
    return {
        "schema": _SCHEMA,
        "date": _now(),
        "verdict": sentence(findings),
        "versions": versions(),
        "machine": {**machine(), **asdict(findings.machine)},
        "options": {**asdict(findings.options), "model": Path(findings.settled.model).name},
        "settled": {**asdict(findings.settled), "model": Path(findings.settled.model).name},
        "definitions": DEFINITIONS,
        "stages": [_row_json(row) for row in findings.rows],
        "waterfall": [
            {"stage": step.row.stage.key, **asdict(step.fall), "saved": step.fall.saved}
            for step in findings.waterfall
        ],
        "claims": [asdict(each) for each in claims(findings)],
        "samples": [asdict(each) for each in findings.samples],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "is_kept": row.is_kept, "is_proven": row.is_proven}


def markdown(findings: Findings) -> str:
    settled = findings.settled
    lines = [
        f"# Playbook: {Path(settled.model).name}, {settled.workload}",
        "",
        sentence(findings),
        "",
        price_line(findings),
        "",
        *_table(HEADINGS, [cells(row) for row in findings.rows]),
        "",
        "## What each stage saves",
        "",
        *_table(
            ("stage", "switch", "cost left of 0b's", "saved"),
            [
                (
                    s.row.stage.label,
                    s.row.stage.switch,
                    f"{s.fall.after:.0%}",
                    f"{s.fall.saved:+.0%}",
                )
                for s in findings.waterfall
            ],
        ),
        "",
        "## The article's claims, and this machine",
        "",
        *_table(
            ("claim", "measured here", ""),
            [(each.claim, each.here, each.holds) for each in claims(findings)],
        ),
        "",
        "## What was measured",
        "",
        *(f"- {line}" for line in facts(findings)),
        *(f"- **{name}**: {text}" for name, text in DEFINITIONS.items()),
        "",
    ]
    return "\n".join(lines)


def _table(headings: Any, rows: Any) -> list[str]:
    def line(values: Any) -> str:
        return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"

    return [line(headings), "|" + "---|" * len(headings), *map(line, rows)]


def facts(findings: Findings) -> list[str]:
    """Of the run, for its numbers to be read by."""
    settled, options, here = findings.settled, findings.options, machine()
    workload = WORKLOADS[settled.workload].fitted(settled.context_tokens)
    own, output = workload.own, workload.output
    memory = (settled.kv_memory_bytes + settled.weight_bytes) / 2**20
    rounds = f"{options.num_rounds} round" + ("s" if options.num_rounds > 1 else "")
    return [
        f"workload {workload.name}: {workload.title}; {workload.shared_tokens} tokens in common, "
        f"{own.mean} (at most {own.longest}) of their own, answers of {output.mean} (at most "
        f"{output.longest}), seed {settled.seed}, {rounds}"
        + (", --quick" if options.quick else ""),
        f"memory of every stage: {memory:,.0f} MiB, of which weights as computed take "
        f"{settled.weight_bytes / 2**20:,.0f}; contiguous KV memory reserves "
        f"{settled.context_tokens:,} tokens for each request",
        f"{here['cpu_model']}, {settled.num_threads} threads, device {settled.device}, kernels "
        f"{findings.machine.kernels}, {settled.dtype}; load average "
        f"{here['load_average_1min']:.1f}",
        ", ".join(f"{name} {value}" for name, value in versions().items()),
    ]


def page(findings: Findings) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    peaks, points = findings.machine.peaks, _points(findings)
    return environment.get_template("report.html").render(
        date=_now(),
        model=Path(findings.settled.model).name,
        findings=findings,
        verdict=sentence(findings),
        price=price_line(findings),
        bars=bars(findings),
        headings=HEADINGS,
        rows=[cells(row) for row in findings.rows],
        baseline=_baseline(findings),
        claims=claims(findings),
        facts=facts(findings),
        definitions=DEFINITIONS,
        qualities=[row for row in findings.rows if row.quality is not None],
        quality_text=quality_text,
        roofline=roofline_plot(points, peaks) if peaks is not None and points else None,
        points=[point.describe(peaks) for point in points if peaks is not None],
    )


def bars(findings: Findings) -> list[Bar]:
    """From 0b's whole cost down, stage by stage; one that the gate refuses hangs beside the others
    and moves nothing."""
    first = findings.first
    if first.cost is None:
        return []
    falls = {step.row.stage.key: step.fall for step in findings.waterfall}
    ours = [row for row in findings.rows if row.stage.is_ours and row.cost is not None]
    ratios = [row.cost.ratio for row in ours if row.cost is not None]
    scale = 100 / max(1.0, *(ratio for ratio in ratios if ratio is not None))
    found = [Bar(first.stage.label, first.stage.switch, 0, scale, "100 %", "whole")]
    left = 1.0
    for row in ours[1:]:
        assert row.cost is not None and row.cost.ratio is not None
        fall = falls.get(row.stage.key)
        after = row.cost.ratio
        before = left if fall is None else fall.before
        kind = "refused" if fall is None else "saved" if row.is_proven else "open"
        if fall is not None and fall.saved < 0:
            kind = "lost"
        text = f"{100 * (after - before):+.0f} → {100 * after:.0f} %".replace("-", "−")
        if fall is None:
            text += f", {row.judged}"
        low, high = sorted((before, after))
        found.append(
            Bar(row.stage.label, row.stage.switch, low * scale, (high - low) * scale, text, kind)
        )
        left = left if fall is None else after
    found.append(Bar("what is left", "", 0, left * scale, f"{100 * left:.0f} %", "whole"))
    return found


def _baseline(findings: Findings) -> str:
    """0a, which stands apart: another engine."""
    row = findings.row(stages.GENERATE)
    if row.figures is None:
        return f"Stage 0a, transformers generate, was skipped: {row.skipped}."
    return (
        f"Stage 0a, transformers generate with static batches on this machine: "
        f"{cost_text(row.cost)}. It is another engine, so it is no part of the fall."
    )


def _points(findings: Findings) -> list[RooflinePoint]:
    """Before and after: of stage 0b, of the last one without quantization, of the last one."""
    wanted = [findings.first, findings.last_unquantized, *findings.kept[-1:]]
    points = {
        row.stage.key: RooflinePoint(row.stage.label, row.decode.work, row.decode.elapsed_s)
        for row in wanted
        if row is not None and row.decode is not None
    }
    return list(points.values())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
