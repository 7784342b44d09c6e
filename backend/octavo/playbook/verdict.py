"""The verdict in a sentence or two: what the order of work has saved, and what of it is proven."""

from __future__ import annotations

from octavo.playbook import stages
from octavo.playbook.findings import Findings, Row

_TECHNIQUES = {
    stages.PAGED.key: "paged KV memory",
    stages.CONTINUOUS.key: "continuous batching",
    stages.SHARED.key: "the prefix cache",
}


def nothing_is_good(findings: Findings) -> str | None:
    """What to say if no stage met the SLO for any request."""
    measured = [row.figures for row in findings.rows if row.figures is not None]
    if any(row.cost is not None for row in findings.rows):
        return None
    ttft_s = min(each.ttft_p50_s for each in measured)
    tpot_s = min(each.tpot_p50_s for each in measured)
    return (
        f"no request of any stage met the SLO: TTFT within {findings.slo.ttft_s:g} s and TPOT "
        f"within {findings.slo.tpot_s:g} s; the best medians are {ttft_s:.3g} and {tpot_s:.3g} s: "
        "raise --slo-ttft-s or --slo-tpot-s, or shorten the requests with --context"
    )


def sentence(findings: Findings) -> str:
    slo = findings.slo
    where = (
        f"{findings.settled.workload}, TTFT within {slo.ttft_s:g} s, TPOT within "
        f"{1e3 * slo.tpot_s:g} ms"
    )
    first, last = findings.first, findings.last_unquantized
    if first.cost is None:
        return (
            f"Contiguous memory with static batches met the SLO for no request ({where}), so there "
            "is no cost to compare with; the table has what later stages cost."
        )
    assert last is not None  # the first one is kept itself
    said = []
    if last is not first:
        said.append(
            f"With {_techniques(findings, last)} a million good tokens cost {_change(last)} than "
            f"with contiguous memory and static batches ({where})."
        )
    without = [
        row.stage.label for row in findings.rows
        if row.stage.is_ours and not row.stage.is_quantized and row.cost is None
        and row.figures is not None
    ]  # fmt: skip
    if without:
        at = f" ({where})" if last is first else ""
        said.append(f"No request met the SLO with {', '.join(without)}{at}.")
    said += [_of_quantized(row) for row in findings.rows if row.stage.is_quantized]
    proven = findings.last_proven
    assert proven is not None
    if proven is not last:
        said.append(f"All that is proven together costs {_change(proven)}.")
    cheapest = min(findings.proven, key=_ratio)
    if cheapest is not proven:
        said.append(f"The cheapest proven stage is {cheapest.stage.label}.")
    return " ".join(said)


def _techniques(findings: Findings, last: Row) -> str:
    """Those that are on in a stage, as each stage adds one."""
    ours = [row.stage.key for row in findings.rows if row.stage.is_ours]
    on = [_TECHNIQUES[key] for key in ours[1 : ours.index(last.stage.key) + 1]]
    return " and ".join(filter(None, (", ".join(on[:-1]), on[-1])))


def _of_quantized(row: Row) -> str:
    name = "int4 weights" if row.stage.weights != "auto" else "int8 KV memory"
    if row.figures is None:
        return f"{name[0].upper()}{name[1:]}: not measured ({row.skipped})."
    assert row.quality is not None
    if row.cost is None:
        return f"{name[0].upper()}{name[1:]}: no request met the SLO."
    change = _change(row)
    match row.judged:
        case "pass":
            return (
                f"With {name} too, which the gate passes (perplexity loss at most "
                f"{row.quality.loss_upper:+.2%}), it costs {change}."
            )
        case "no signal":
            return (
                f"With {name} too it costs {change}; this model cannot read the text, so nothing "
                "is said of quality."
            )
        case "not judged":
            return f"With {name} too it costs {change}, with a quality that nobody has measured."
        case judged:
            return (
                f"With {name} it costs {change}, but the gate says {judged} "
                f"({row.quality.reason}): not adopted."
            )


def _ratio(row: Row) -> float:
    assert row.cost is not None and row.cost.ratio is not None
    return row.cost.ratio


def _change(row: Row) -> str:
    saved = 1 - _ratio(row)
    return f"{saved:.0%} less" if saved >= 0 else f"{-saved:.0%} more"
