"""A profile as people read it: the same lines and rows on the terminal and on the page."""

from __future__ import annotations

from octavo.benchmarks.profile import Result
from octavo.planner.operations import GAPS

OPERATION_HEADINGS = (
    "\noperation", "\nms", "% of\nstep", "waiting\n%", "\nMB", "\nMFLOP", "\nGB/s", "\nGFLOP/s",
    "% of\nread peak", "FLOP/\nbyte", "\nbound", "% of\nroof",
)  # fmt: skip
_NONE = "–"
# Of the operations that compute, on plots.
COLORS = {
    "qkv": "#1f5fa8", "attend": "#d1661b", "output": "#4f8f8f", "gate_up": "#3f9142",
    "down": "#8e5bb5", "lm_head": "#b03a48",
}  # fmt: skip


def title(result: Result) -> str:
    where = result["device"] if result["device"] != "cpu" else f"{result['threads']} threads"
    quality = f" ({result['quality']})" if result["quality"] else ""
    return (
        f"{result['model']}: weights {result['weight_format']}{quality}, "
        f"KV {result['kv_cache_dtype']}, {where}, {result['kernels']} kernels, "
        f"{result['machine']['cpu_model'] if result['device'] == 'cpu' else result['device_name']}"
    )


def peaks_line(result: Result) -> str:
    peaks = result["peaks"]
    rates = ", ".join(
        f"{kind} {rate / 1e9:,.0f} GFLOP/s" for kind, rate in peaks["flops_per_s"].items()
    )
    return (
        f"peaks, measured in this run: read {peaks['read_bytes_per_s'] / 1e9:,.1f} GB/s; "
        f"products {rates}"
    )


def headline(result: Result, name: str) -> str:
    phase = result["phases"][name]
    if name == "prefill":
        what = f"prefill: {result['batch']} prompts of {result['prompt_tokens']:,} tokens"
        steps = phase["steps"]
        took = f"{ms(phase['time_s'])} ms in {steps} step{'s' if steps > 1 else ''}"
    else:
        context = phase["context_tokens"] / result["batch"]
        what = f"decode: {result['batch']} sequences at context {context:,.0f}"
        took = f"{ms(phase['time_s'])} ms a step"
    return (
        f"{what}: {took}, {phase['tokens_per_s']:,.0f} tokens/s; MBU {percent(phase['mbu_ratio'])}"
        f" %, MFU {percent(phase['mfu_ratio'])} % of {phase['matrix_kind']}; {phase['bound']} "
        f"bound, {percent(phase['roof_ratio'])} % of its roof"
    )


def operation_rows(phase: Result) -> list[tuple[str, ...]]:
    """By OPERATION_HEADINGS; the last is their sum."""
    rows = [_operation_row(each) for each in phase["operations"]]
    elapsed_s = sum(each["time_s"] for each in phase["operations"])
    step_ratio = sum(each["step_ratio"] for each in phase["operations"])
    rows.append(
        (
            "all", ms(elapsed_s), percent(step_ratio), "", f"{phase['bytes'] / 1e6:,.2f}",
            f"{phase['flops'] / 1e6:,.1f}", f"{phase['bytes'] / elapsed_s / 1e9:,.1f}",
            f"{phase['flops'] / elapsed_s / 1e9:,.1f}", "", "", "", "",
        )
    )  # fmt: skip
    return rows


def _operation_row(row: Result) -> tuple[str, ...]:
    elapsed_s, waited_s = row["time_s"], row["waited_s"]
    waiting = _NONE if waited_s is None or not elapsed_s else percent(waited_s / elapsed_s)
    first = (row["operation"], ms(elapsed_s), percent(row["step_ratio"]), waiting)
    if "bound" not in row:
        return (*first, *[_NONE] * 8)
    intensity = row["intensity_flops_per_byte"]
    return (
        *first,
        f"{row['bytes'] / 1e6:,.2f}",
        f"{row['flops'] / 1e6:,.1f}",
        f"{row['read_bytes_per_s'] / 1e9:,.1f}",
        f"{row['flops_per_s'] / 1e9:,.1f}",
        percent(row["read_peak_ratio"]),
        "∞" if intensity is None else f"{intensity:,.1f}",
        row["bound"],
        percent(row["roof_ratio"]),
    )


def gap_rows(phase: Result) -> list[tuple[str, str, str, str]]:
    """Each part of the step, and their sum, which is the step."""
    whole_s = phase["time_s"]
    rows = [
        (name, ms(elapsed_s), percent(elapsed_s / whole_s), GAPS[name])
        for name, elapsed_s in phase["gaps_s"].items()
    ]
    total_s = sum(phase["gaps_s"].values())
    return [*rows, ("step", ms(total_s), percent(total_s / whole_s), "")]


def gap_sentence(phase: Result) -> str:
    """Which part is the largest beside what bytes and computing must take."""
    gaps = {
        name: elapsed_s
        for name, elapsed_s in phase["gaps_s"].items()
        if name not in ("bytes", "compute", "recording")
    }
    name = max(gaps, key=lambda each: gaps[each])
    floor = phase["gaps_s"]["bytes"] + phase["gaps_s"]["compute"]
    return (
        f"The least that the peaks allow is {percent(floor / phase['time_s'])} % of the step. The "
        f"largest part beside it is {name} ({percent(gaps[name] / phase['time_s'])} %): "
        f"{GAPS[name]}."
    )


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def percent(ratio: float) -> str:
    """Whole ones, with a digit more below 10."""
    value = 100 * ratio
    return f"{value:,.1f}" if abs(value) < 9.95 else f"{value:,.0f}"
