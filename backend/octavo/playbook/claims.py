"""The article's figures beside what was measured here. Where they differ, this says so."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from octavo.planner import savings
from octavo.playbook import stages
from octavo.playbook.findings import Findings, Row
from octavo.playbook.samples import DecodeSteps, quantile
from octavo.quantization.kv import KV_FORMATS

Holds = Literal["holds", "differs", "not measured", "for reading"]

_PAGE_BYTES = 16 * 1024
_LONG_TOKENS = 32 * 1024
# Llama 2 and 3 with 70B weights; without grouped queries each of the query heads has its own K, V.
_LAYERS_70B, _KV_HEADS_70B, _HEADS_70B, _HEAD_DIM_70B = 80, 8, 64, 128


@dataclass(frozen=True, slots=True)
class Claim:
    claim: str
    here: str
    holds: Holds


def claims(findings: Findings) -> list[Claim]:
    return [
        _page(findings),
        _bandwidth(findings),
        _long_context(findings),
        _identical(findings),
        _latency(findings),
        _shares(findings),
        _cost(findings),
    ]


def _page(findings: Findings) -> Claim:
    settled = findings.settled
    block = findings.row(stages.PAGED).figures
    tokens = 16 if block is None else block.block_tokens
    return Claim(
        "KV memory in pages of 16 KB",
        f"16 KB are {settled.page_tokens or 'less than one'} tokens of one layer of this model "
        f"({settled.kv_layer_token_bytes:,} bytes each), which the engine takes as "
        f"{settled.engine_page_tokens}; measured with its own {tokens} tokens, "
        f"{tokens * settled.kv_layer_token_bytes / 1024:,.0f} KB a layer",
        "for reading",
    )


def _bandwidth(findings: Findings) -> Claim:
    claim, peaks = "about 900 GB/s of memory bandwidth (A100)", findings.machine.peaks
    if peaks is None:
        return Claim(claim, "this device's peaks are not probed", "not measured")
    here = peaks.read_bytes_per_s / 1e9
    return Claim(
        claim,
        f"{here:,.1f} GB/s read by {findings.settled.num_threads} threads of this machine, "
        f"1/{900 / here:,.0f} of that; NVIDIA's datasheets of the A100 say 1,555 to 2,039",
        "for reading",
    )


def _long_context(findings: Findings) -> Claim:
    own = KV_FORMATS["bfloat16"]
    grouped, alone = (
        _LAYERS_70B * own.block_bytes(_LONG_TOKENS, heads, _HEAD_DIM_70B)
        for heads in (_KV_HEADS_70B, _HEADS_70B)
    )
    here = _LONG_TOKENS * findings.settled.kv_token_bytes
    return Claim(
        "over 100 GB of keys and values for a prompt of 32k tokens on 70B",
        f"{grouped / 1e9:,.1f} GB with the grouped queries that Llama 70B has, "
        f"{alone / 1e9:,.1f} GB without, both in 16 bits; {here / 1e9:,.2f} GB of this model",
        "differs",
    )


def _identical(findings: Findings) -> Claim:
    found = findings.machine.identical
    prefill = 1 - found.shared.computed_tokens / found.alone.computed_tokens
    memory = 1 - found.shared.peak_kv_bytes / found.alone.peak_kv_bytes
    return Claim(
        f"{found.prompts} identical prompts share their pages",
        f"{prefill:.0%} less prefill ({found.alone.computed_tokens:,} → "
        f"{found.shared.computed_tokens:,} tokens) and {memory:.0%} less KV memory at the peak, "
        f"{found.prompts} × {found.prompt_tokens} tokens, blocks of 16",
        "holds" if prefill > 0 and memory > 0 else "differs",
    )


def _latency(findings: Findings) -> Claim:
    claim = "latency a third to a half lower"
    first, last = findings.first, findings.last_unquantized
    if first.figures is None or last is None or last is first:
        return Claim(claim, "no two stages to compare", "not measured")
    users = first.figures.users
    before, after = _e2e_p50_s(findings, first, users), _e2e_p50_s(findings, last, users)
    if before is None or after is None:
        return Claim(claim, f"no load of {users} users in both stages", "not measured")
    lower = 1 - after / before
    return Claim(
        claim,
        f"end to end p50 {before:.2f} → {after:.2f} s, {lower:.0%} lower, with {users} users in "
        "stage 0b and in the last one without quantization",
        "holds" if lower >= 1 / 3 else "differs",
    )


def _e2e_p50_s(findings: Findings, row: Row, users: int) -> float | None:
    found = [
        quantile([request.e2e_s for request in sample.requests], 0.5)
        for sample in findings.samples
        if sample.stage == row.stage.key and sample.users == users
    ]
    return median(found) if found else None


def _shares(findings: Findings) -> Claim:
    claim = "80 to 90 % of the compute at under 70 % of the bandwidth"
    row = findings.kept[-1] if findings.kept else None
    shares = None if row is None or row.decode is None else peak_shares(findings, row.decode)
    if row is None or shares is None:
        return Claim(claim, "no peaks to compare with", "not measured")
    bandwidth, compute = shares
    return Claim(
        claim,
        f"decode steps of stage {row.stage.label}: {compute:.0%} of the measured compute peak, "
        f"{bandwidth:.0%} of the measured bandwidth",
        "holds" if compute >= 0.8 and bandwidth < 0.7 else "differs",
    )


def peak_shares(findings: Findings, decode: DecodeSteps) -> tuple[float, float] | None:
    """MBU and MFU of steps that only decode."""
    peaks = findings.machine.peaks
    if peaks is None:
        return None
    return decode.work.peak_ratios(decode.elapsed_s, peaks.read_bytes_per_s, peaks.flops_per_s)


def _cost(findings: Findings) -> Claim:
    claim = "30 to 50 % lower cost"
    first, last, proven = findings.first, findings.last_unquantized, findings.last_proven
    if first.cost is None or last is None or last is first or proven is None:
        return Claim(claim, "no two stages to compare", "not measured")
    saved = _saved(first, proven)
    return Claim(
        claim,
        f"{_change(_saved(first, last))} for a million good tokens without quantization "
        f"({last.stage.label}), {_change(saved)} to the last stage with proven quality "
        f"({proven.stage.label})",
        "holds" if saved >= 0.3 else "differs",
    )


def _change(saved: float) -> str:
    return f"{saved:.0%} lower" if saved >= 0 else f"{-saved:.0%} higher"


def _saved(first: Row, row: Row) -> float:
    assert first.figures is not None and row.figures is not None
    return savings.saving_ratio(row.figures.good_tokens_per_s, first.figures.good_tokens_per_s)
