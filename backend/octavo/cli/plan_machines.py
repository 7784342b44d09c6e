"""What `octavo plan` computes on: machines of the catalog or this one, each with its price."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from octavo.cli.paths import cache_dir
from octavo.errors import ConfigError, OctavoError
from octavo.planner.checks import number
from octavo.planner.hardware import Accelerator, Machine, find_machine
from octavo.planner.latency import Efficiency
from octavo.planner.prices import Prices, Quote

THIS_MACHINE = "this machine"


@dataclass(frozen=True, slots=True)
class Candidate:
    """machine_usd_per_hour: of the whole machine; None: no price is known
    is_whole: it is rented as a whole; else one accelerator's share of the price is taken
    note: what the reader has to know of the price
    quote: where it is from; None: it was given
    """

    machine: Machine
    machine_usd_per_hour: float | None
    is_whole: bool
    note: str | None = None
    quote: Quote | None = None


def candidate(name: str, prices: Prices, usd_per_hour: float | None) -> Candidate:
    """Of the catalog. Raises ConfigError."""
    machine = find_machine(name)
    if usd_per_hour is not None:
        return Candidate(machine, usd_per_hour, is_whole=True)
    if name in prices.machines:
        price = prices.machines[name]
        return Candidate(machine, price.usd_per_hour, True, None, price.quote)
    holder = prices.holder(name)
    if holder is not None:
        price = prices.machines[holder.name]
        return Candidate(
            Machine(name, machine.accelerator, holder.count),
            price.usd_per_hour,
            is_whole=False,
            note=f"{name} is priced as one of {holder.count} in {holder.name}"
            + (", which is rented as a whole" if holder.count > 1 else ""),
            quote=price.quote,
        )
    return Candidate(machine, None, True, f"no price of {name} is known; give --price")


def this_machine(activation: str, usd_per_hour: float | None) -> Candidate:
    """This one's processors, measured by the engine's kernels. Raises OctavoError."""
    import psutil

    from octavo.benchmarks.machine import machine

    found = machine()
    cores = int(str(found["cores"]))
    read, flops = _measured_peaks(cores, activation)
    accelerator = Accelerator(
        name=THIS_MACHINE,
        title=f"this machine ({found['cpu_model']}, {cores} cores)",
        kind="cpu",
        memory_bytes=psutil.virtual_memory().available,
        read_bytes_per_s=read,
        flops_per_s={activation: flops},
        power_w=None,
        sources={"read_bytes_per_s": "measured now", "flops_per_s": "measured now"},
    )
    note = None if usd_per_hour is not None else "this machine has no price; give --price"
    return Candidate(Machine(THIS_MACHINE, accelerator, 1), usd_per_hour, True, note)


def _measured_peaks(cores: int, activation: str) -> tuple[float, float]:
    """Bytes and FLOPs per second: by the engine's kernels or, where they cannot be built, by torch.
    Raises OctavoError."""
    for kernels in ("auto", "reference"):
        arguments = (str(cores), kernels, str(cache_dir() / "kernels"), activation)
        done = subprocess.run(
            [sys.executable, "-m", "octavo.benchmarks.peak_probe", *arguments],
            input="\n", capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 0 and done.stdout:
            read, flops = done.stdout.split()
            return float(read), float(flops)
    lines = done.stderr.strip().splitlines() or ["it ended"]
    raise OctavoError(f"--measured: the probe of the peaks failed ({lines[-1]})")


def read_constants(path: Path | None) -> Efficiency | None:
    """Raises ConfigError."""
    if path is None:
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"--constants = {path}: {exc}") from None
    if isinstance(values, dict):
        values = values.get("efficiency", values)
    names = [field.name for field in fields(Efficiency)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ConfigError(f"--constants = {path}: an object with {', '.join(names)} is expected")
    # No share of a peak is above the peak: `fitting` finds none either.
    most = {name: 1.0 if name.endswith("_ratio") else math.inf for name in names}
    return Efficiency(
        **{
            name: number(f"{path}: {name}", values[name], above=True, most=most[name])
            for name in names
        }
    )
