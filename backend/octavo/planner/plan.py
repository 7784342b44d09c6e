"""A model on a machine under a workload: how fast it answers, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from octavo.config import SLO
from octavo.errors import ConfigError
from octavo.planner import cost
from octavo.planner.capacity import Request
from octavo.planner.hardware import Accelerator, Machine
from octavo.planner.latency import ASSUMED, Efficiency, Loaded, Prediction, Speed, predict
from octavo.planner.model import ModelSizes, format_of
from octavo.planner.setup import MOST_SEQUENCES, Fit, Setup, fit
from octavo.quantization.weights import WeightFormat

Limit = Literal["weights", "step", "kv", "ttft", "tpot", "max_num_seqs"]


@dataclass(frozen=True, slots=True)
class Workload:
    """requests_per_s: of all tenants together; None: as many as the engines of one machine serve
    load_ratio: of an engine's capacity that is planned for, the rest is for bursts"""

    request: Request
    requests_per_s: float | None = None
    slo: SLO = field(default_factory=SLO)
    load_ratio: float = 0.7


@dataclass(frozen=True, slots=True)
class Engine:
    """A model as a setup holds it, on an accelerator, under requests of one kind."""

    loaded: Loaded
    speed: Speed
    request: Request
    setup: Setup

    def at(self, batch: float) -> Prediction:
        return predict(
            self.loaded,
            self.speed,
            self.request,
            batch,
            chunk_tokens=self.setup.max_num_batched_tokens,
            block_tokens=self.setup.block_size,
            share_prefix=self.setup.share_prefix and self.setup.paged,
        )

    def at_rate(self, requests_per_s: float, largest: float) -> Prediction:
        """Of the batch, from 1 to `largest`, at which as many requests finish as come."""
        low, high = 1.0, max(largest, 1.0)
        for _ in range(40):
            middle = (low + high) / 2
            if self.at(middle).requests_per_s < requests_per_s:
                low = middle
            else:
                high = middle
        return self.at(high)


@dataclass(frozen=True, slots=True)
class Outcome:
    """best: at the largest batch within the SLO; None if there is none
    lone: of one request alone; None if it does not fit
    limit: what keeps the batch from being larger"""

    engine: Engine
    fit: Fit
    lone: Prediction | None
    best: Prediction | None
    limit: Limit


@dataclass(frozen=True, slots=True)
class Bill:
    """replicas: engines; machines: that hold them, in parts where one accelerator is priced alone
    idle_accelerators: of these machines, paid for all the same
    at_load: each replica's, at its share of the rate
    """

    replicas: int
    machines: float
    idle_accelerators: int
    usd_per_hour: float
    requests_per_s: float
    at_load: Prediction
    usd_per_million_good_tokens: float
    input_usd_per_million: float
    output_usd_per_million: float


def evaluate(
    model: ModelSizes,
    accelerator: Accelerator,
    workload: Workload,
    setup: Setup,
    efficiency: Efficiency | None = None,
) -> Outcome:
    """The largest batch that fits and meets the SLO: TTFT and TPOT grow with it. Without an
    efficiency that is fitted, the assumed one. Raises ConfigError."""
    found = fit(model, accelerator, workload.request, setup)
    own = format_of(model, setup.weight_format)
    speed = Speed(
        accelerator.read_bytes_per_s,
        accelerator.peak_flops_per_s(computed_in(model, accelerator, own)),
        efficiency or ASSUMED[accelerator.kind],
    )
    loaded = Loaded(model, found.weights.step, found.token_bytes, own.weight_bits)
    engine = Engine(loaded, speed, workload.request, setup)
    if found.requests < 1:
        return Outcome(engine, found, None, None, _memory_limit(found))
    allowed = min(found.requests, setup.max_num_seqs or MOST_SEQUENCES)
    lone, slow = engine.at(1), _too_slow(engine.at(allowed), workload.slo)
    if slow is None:
        limit: Limit = "kv" if allowed == found.requests else "max_num_seqs"
        return Outcome(engine, found, lone, engine.at(allowed), limit)
    low, high = 0, allowed  # the first meets the SLO, or is none; the last does not
    while high - low > 1:
        middle = (low + high) // 2
        tried = _too_slow(engine.at(middle), workload.slo)
        low, high, slow = (middle, high, slow) if tried is None else (low, middle, tried)
    return Outcome(engine, found, lone, engine.at(low) if low else None, slow)


def _memory_limit(found: Fit) -> Limit:
    """Of an engine in which no request fits: the first that finds no room."""
    if found.kv_bytes >= 0:
        return "kv"
    return "weights" if found.kv_bytes + found.step_bytes < 0 else "step"


def computed_in(model: ModelSizes, accelerator: Accelerator, own: WeightFormat) -> str:
    """What products are computed in: bfloat16 in place of a float16 that an accelerator has no
    peak of. It takes as many bytes. Raises ConfigError for a dtype that nobody named."""
    known = accelerator.flops_per_s
    if own.activation == "float16" and "float16" not in known and "bfloat16" in known:
        return "bfloat16"
    if own.activation == model.dtype and not model.is_dtype_named and model.dtype not in known:
        raise ConfigError(
            f"{_taken_as(model)}; no peak for {model.dtype} is known of {accelerator.name}, but "
            f"for {', '.join(known)}: name --dtype bfloat16, or have the config name it"
        )
    return own.activation


def dtype_notes(model: ModelSizes, accelerator: Accelerator, setup: Setup) -> list[str]:
    """What is not computed as the checkpoint says, or says nothing. Raises ConfigError."""
    notes = [] if model.is_dtype_named else [_taken_as(model)]
    own = format_of(model, setup.weight_format)
    if (found := computed_in(model, accelerator, own)) != own.activation:
        notes.append(
            f"{model.name} is {own.activation}, of which no peak of {accelerator.name} is known: "
            f"planned in {found} there, of the same size"
        )
    return notes


def _taken_as(model: ModelSizes) -> str:
    return f"the config of {model.name} has no torch_dtype and is taken as {model.dtype}"


def _too_slow(prediction: Prediction, slo: SLO) -> Limit | None:
    if prediction.ttft_s > slo.ttft_s:
        return "ttft"
    return "tpot" if prediction.tpot_s > slo.tpot_s else None


def bill(
    outcome: Outcome,
    machine: Machine,
    machine_usd_per_hour: float,
    workload: Workload,
    *,
    whole_machines: bool = True,
) -> Bill:
    """Of an outcome that has a batch. Every token is good: each request is planned to meet its SLO.

    machine_usd_per_hour: of the machine with all its accelerators
    whole_machines: replicas are rounded up to what machines hold
    """
    best, request = outcome.best, workload.request
    assert best is not None
    planned = best.requests_per_s * workload.load_ratio
    if workload.requests_per_s is None:
        # What is rented as a whole is taken as full: else machines of more accelerators seem dear.
        replicas = machine.count if whole_machines else 1
        rate = planned * replicas
    else:
        rate = workload.requests_per_s
        replicas = max(1, math.ceil(rate / planned))
    machines = replicas / machine.count
    if whole_machines:
        machines = math.ceil(machines)
    usd_per_hour = machines * machine_usd_per_hour
    tokens_per_s = rate * request.output_tokens
    at_load = outcome.engine.at_rate(rate / replicas, best.batch)
    input_usd, output_usd = cost.split_by_time(
        usd_per_hour / cost.HOUR_S, at_load.prefill_s, at_load.decode_s
    )
    return Bill(
        replicas=replicas,
        machines=machines,
        idle_accelerators=round(machines * machine.count) - replicas,
        usd_per_hour=usd_per_hour,
        requests_per_s=rate,
        at_load=at_load,
        usd_per_million_good_tokens=cost.usd_per_million_at(usd_per_hour, tokens_per_s),
        input_usd_per_million=cost.usd_per_million(input_usd, rate * request.prompt_tokens),
        output_usd_per_million=cost.usd_per_million(output_usd, tokens_per_s),
    )
