"""The options of a run: how Locust's command line, environment and web form show them, and the
checked values that everything else uses."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from loadtest.arrivals import ARRIVALS, Arrival, schedule
from loadtest.workloads import WORKLOADS, WorkloadSettings

if TYPE_CHECKING:  # importing Locust patches the standard library, which the report has no need of
    from locust.argument_parser import LocustArgumentParser

Transport = Literal["grpc", "http"]
Arrivals = Literal["closed"] | Arrival

DEFAULT_HOST = "http://localhost:8000"
# The schedule of an open-loop run without --run-time, as the web form allows.
_DEFAULT_DURATION_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run, as all its processes know it."""

    workload: WorkloadSettings
    arrival: Arrivals
    rate: float
    burstiness: float
    duration_s: float
    max_in_flight: int
    transport: Transport
    host: str
    grpc_address: str
    model: str
    connections: int
    request_timeout_s: float
    drain_timeout_s: float
    warmup_s: float
    slo_ttft_s: float
    slo_tpot_s: float
    num_users: int = 1

    def __post_init__(self) -> None:
        for option, value in (
            ("connections", self.connections),
            ("max-in-flight", self.max_in_flight),
            ("request-timeout", self.request_timeout_s),
            ("slo-ttft", self.slo_ttft_s),
            ("slo-tpot", self.slo_tpot_s),
        ):
            if not value > 0:
                raise ValueError(f"{option}: got {value}, must be above 0")
        for option, value in (("warmup", self.warmup_s), ("drain-timeout", self.drain_timeout_s)):
            if value < 0:
                raise ValueError(f"{option}: got {value}, must not be below 0 s")
        if self.transport not in ("grpc", "http"):
            raise ValueError(f"transport: got {self.transport}, must be grpc or http")
        if self.arrival == "closed":
            return
        if self.arrival not in ARRIVALS:
            raise ValueError(f"arrival: got {self.arrival}, must be closed, {', '.join(ARRIVALS)}")
        self.schedule_ns()

    @property
    def is_open_loop(self) -> bool:
        return self.arrival != "closed"

    def schedule_ns(self) -> list[int]:
        """All arrivals, in nanoseconds from the start. Only for an open loop."""
        assert self.arrival != "closed"
        times = schedule(
            self.arrival,
            rate=self.rate,
            duration_s=self.duration_s,
            seed=self.workload.seed,
            burstiness=self.burstiness,
        )
        return [int(second * 1e9) for second in times]

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSettings:
        return cls(**{**value, "workload": WorkloadSettings(**value["workload"])})

    @classmethod
    def from_options(cls, options: argparse.Namespace, host: str | None) -> RunSettings:
        """Raises ValueError. Numbers may be text: the web form sends them so."""
        host = host or DEFAULT_HOST
        return cls(
            workload=WorkloadSettings(
                name=options.workload,
                seed=int(options.seed),
                max_model_len=int(options.max_model_len),
                vocab_size=int(options.vocab_size),
                input_tokens=_optional_int(options.input_tokens),
                output_tokens=_optional_int(options.output_tokens),
                length_cv=float(options.length_cv),
                num_prefixes=int(options.prefixes),
                num_suffixes=int(options.suffixes),
                cancel_ratio=float(options.cancel_ratio),
                cancel_after_s=float(options.cancel_after),
            ),
            arrival=options.arrival,
            rate=float(options.rate),
            burstiness=float(options.burstiness),
            duration_s=float(options.run_time or _DEFAULT_DURATION_S),
            max_in_flight=int(options.max_in_flight),
            transport=options.transport,
            host=host,
            grpc_address=options.grpc_address or _grpc_beside(host),
            model=options.model,
            connections=int(options.connections),
            request_timeout_s=float(options.request_timeout),
            drain_timeout_s=float(options.drain_timeout),
            warmup_s=float(options.warmup),
            slo_ttft_s=float(options.slo_ttft),
            slo_tpot_s=float(options.slo_tpot),
            num_users=int(options.num_users or 1),
        )


def _optional_int(value: object) -> int | None:
    return int(str(value)) if value not in (None, "") else None


def _grpc_beside(host: str) -> str:
    """Triton's gRPC port is by convention the one after the HTTP port."""
    parts = urlsplit(host if "://" in host else f"http://{host}")
    return f"{parts.hostname}:{(parts.port or 8000) + 1}"


def add_options(parser: LocustArgumentParser) -> None:
    """Each option also reads LOADTEST_<NAME> from the environment."""
    group = parser.add_argument_group("Octavo load test")

    def add(name: str, default: Any, text: str, **more: Any) -> None:
        if isinstance(default, (int, float)):
            more.setdefault("type", type(default))
        variable = "LOADTEST_" + name.replace("-", "_").upper()
        group.add_argument(f"--{name}", default=default, help=text, env_var=variable, **more)

    add("workload", "chat", "what is asked (default: chat)", choices=WORKLOADS)
    add("arrival", "closed", "closed: --users send one request after the other; poisson, gamma, "
        "constant: an open loop that sends at --rate, whatever the server does (default: closed)",
        choices=("closed", *ARRIVALS))  # fmt: skip
    add("rate", 1.0, "open loop: requests per second (default: 1)")
    add("burstiness", 1.0, "gamma: shape of the gaps; 1 is Poisson, below 1 is burstier "
        "(default: 1)")  # fmt: skip
    add("max-in-flight", 256, "open loop: an arrival that meets so many requests (of its process) "
        "is dropped, and the run is invalid (default: 256)")  # fmt: skip
    add("transport", "grpc", "grpc: ModelStreamInfer; http: generate_stream (default: grpc)",
        choices=("grpc", "http"))  # fmt: skip
    add("grpc-address", None, "host:port of gRPC (default: the host of --host, its port + 1)")
    add("connections", 4, "gRPC connections of each process (default: 4)")
    add("model", "llm", "the model's name (default: llm)")
    add("seed", 0, "of arrivals, lengths and prompts (default: 0)")
    add("output", "", "folder for the run's records and report (default: a new one under "
        "loadtest-results)")  # fmt: skip
    add("warmup", 0.0, "seconds at the start that are loaded but not counted (default: 0)")
    add("drain-timeout", 30.0, "seconds that running requests get to end after the run "
        "(default: 30)")  # fmt: skip
    add("request-timeout", 600.0, "seconds after which a request is an error (default: 600)")
    add("slo-ttft", 2.0, "goodput: most seconds to the first text (default: 2)")
    add("slo-tpot", 0.1, "goodput: most seconds per output token (default: 0.1)")
    add("max-model-len", 2048, "the model's context in tokens, to which lengths are scaled "
        "(default: 2048, octavo-tiny's)")  # fmt: skip
    add("vocab-size", 4096, "prompts are made of token ids below it (default: 4096)")
    add("input-tokens", None, "mean prompt length, instead of the workload's", type=int)
    add("output-tokens", None, "mean output length, instead of the workload's", type=int)
    add("length-cv", 0.25, "spread of lengths: standard deviation / mean (default: 0.25)")
    add("prefixes", 8, "shared-prefix: how many prefixes (default: 8)")
    add("suffixes", 32, "shared-prefix: how many suffixes each has (default: 32)")
    add("cancel-ratio", 0.2, "cancel: share of requests to cancel (default: 0.2)")
    add("cancel-after", 0.5, "cancel: seconds from sending to cancelling (default: 0.5)")
