"""The options of a run, from a command line and from Locust's web form."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from loadtest.settings import RunSettings, add_options
from tests.loadtest.made_up_runs import settings


class Parser(argparse.ArgumentParser):
    """Like Locust's: takes the environment's name too."""

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        group = super().add_argument_group(*args, **kwargs)
        add = group.add_argument
        group.add_argument = lambda *a, env_var, **k: add(*a, **k)  # type: ignore[assignment]
        return group


def options(*arguments: str, **locusts: Any) -> argparse.Namespace:
    parser = Parser()
    parser.set_defaults(run_time=60, num_users=None, **locusts)
    add_options(parser)  # type: ignore[arg-type]
    return parser.parse_args(arguments)


def test_defaults_are_a_closed_loop_of_chat_at_tritons_ports() -> None:
    made = RunSettings.from_options(options(), None)
    assert (made.arrival, made.workload.name, made.transport) == ("closed", "chat", "grpc")
    assert (made.host, made.grpc_address) == ("http://localhost:8000", "localhost:8001")
    assert (made.slo_ttft_s, made.slo_tpot_s) == (2.0, 0.1)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("http://triton:9000", "triton:9001"),
        ("triton:9000", "triton:9001"),
        ("triton", "triton:8001"),
    ],
)
def test_grpc_is_beside_http(host: str, address: str) -> None:
    assert RunSettings.from_options(options(), host).grpc_address == address
    given = RunSettings.from_options(options("--grpc-address", "elsewhere:1"), host)
    assert given.grpc_address == "elsewhere:1"


def test_the_web_form_sends_text() -> None:
    given = options("--input-tokens", "100")
    given.input_tokens, given.rate, given.output_tokens = "100", "2.5", ""
    made = RunSettings.from_options(given, None)
    assert (made.workload.input_tokens, made.rate, made.workload.output_tokens) == (100, 2.5, None)


def test_settings_travel_as_json() -> None:
    made = settings(arrival="gamma", burstiness=0.5, workload={"name": "rag", "seed": 9})
    assert RunSettings.from_json(made.as_json()) == made


def test_the_seed_decides_the_schedule() -> None:
    first, again, other = (settings(workload={"seed": s}).schedule_ns() for s in (1, 1, 2))
    assert first == again != other
    assert 0 < first[0] < first[-1] < 60e9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arrival": "burst"}, "arrival: got burst, must be closed, poisson, gamma, constant"),
        ({"rate": 0}, "rate: got 0, must be above 0"),
        ({"max_in_flight": 0}, "max-in-flight: got 0"),
        ({"connections": 0}, "connections: got 0"),
        ({"warmup_s": -1}, "warmup: got -1"),
        ({"slo_tpot_s": 0}, "slo-tpot: got 0"),
        ({"transport": "pigeon"}, "transport: got pigeon, must be grpc or http"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changed)
