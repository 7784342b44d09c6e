"""How a stage's numbers are written, the same in the terminal, in Markdown and in the page."""

from __future__ import annotations

from octavo.playbook.facts import Quality
from octavo.playbook.findings import Cost, Findings, Row

HEADINGS = (
    "stage", "users", "TTFT p50 / p95, s", "TPOT p50 / p95, ms", "tokens/s", "good tokens/s",
    "good req/s", "fit", "cost of 1M good tokens", "quality, perplexity",
)  # fmt: skip

SHORT_HEADINGS = (
    "stage", "users", "TTFT, s", "TPOT, ms", "good/s", "fit", "cost of 1M", "share", "quality"
)  # fmt: skip


def short_cells(row: Row) -> list[str]:
    """One for each of SHORT_HEADINGS: medians, for a terminal of 80 columns."""
    if row.figures is None:
        return [row.stage.label, *[""] * (len(SHORT_HEADINGS) - 2), "skipped"]
    own, cost = row.figures, row.cost
    return [
        row.stage.label,
        f"{own.users}",
        f"{own.ttft_p50_s:.3f}",
        f"{1e3 * own.tpot_p50_s:.1f}",
        f"{own.good_tokens_per_s:,.0f}",
        f"{own.fit:,}",
        "SLO not met" if cost is None else _amount(cost),
        "" if cost is None or cost.ratio is None else f"{cost.ratio:.0%}",
        row.judged or "",
    ]


def cells(row: Row) -> list[str]:
    """One for each heading."""
    if row.figures is None:
        return [row.stage.label, *[""] * (len(HEADINGS) - 2), f"skipped: {row.skipped}"]
    own = row.figures
    return [
        row.stage.label,
        f"{own.users}",
        f"{own.ttft_p50_s:.3f} / {own.ttft_p95_s:.3f}",
        f"{1e3 * own.tpot_p50_s:.1f} / {1e3 * own.tpot_p95_s:.1f}",
        f"{own.tokens_per_s:,.0f}",
        _good(row),
        f"{own.goodput_rps:,.2f}",
        f"{own.fit:,}",
        cost_text(row.cost),
        quality_text(row.quality),
    ]


def _good(row: Row) -> str:
    assert row.figures is not None
    own = row.figures
    text = f"{own.good_tokens_per_s:,.0f}"
    if own.rounds > 1:
        text += f" ({own.least_good_tokens_per_s:,.0f}–{own.most_good_tokens_per_s:,.0f})"
    return text


def cost_text(cost: Cost | None) -> str:
    if cost is None:
        return "no request met the SLO"
    text = _amount(cost)
    return text if cost.ratio is None else f"{text} ({cost.ratio:.0%})"


def _amount(cost: Cost) -> str:
    return f"{cost.machine_s:,.0f} s" if cost.usd is None else usd_text(cost.usd)


def usd_text(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 0.1 else f"${usd:.4f}"


def quality_text(quality: Quality | None) -> str:
    if quality is None:
        return "as computed"
    if quality.loss is None or quality.judged in ("no signal", "not judged"):
        return quality.judged
    return (
        f"{quality.judged}, {quality.loss:+.2%} ({_bound(quality.loss_lower)} to "
        f"{_bound(quality.loss_upper)})"
    )


def _bound(loss: float | None) -> str:
    return "unknown" if loss is None or not -1 < loss < 1e9 else f"{loss:+.2%}"


def price_line(findings: Findings) -> str:
    price = findings.options.usd_per_hour
    if price is None:
        return (
            "No price was given, so cost is the machine's seconds for a million good tokens, and "
            "its share of stage 0b's beside it. With --price-per-hour USD it is in dollars."
        )
    return f"At ${price:g} per hour of this machine; beside it the share of stage 0b's cost."
