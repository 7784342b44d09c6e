"""Locust's numbers are those of a minimal asyncio client, within 2 %.

The noise of a shared machine is larger than that from one run to the next, so both observers
always look at the same thing. Against a scripted server, whose answers have exact times, they
send the same schedule side by side. In front of the real server the asyncio client stands as a
relay, so that both see the very same responses. Latencies are long enough for 2 % to be several
milliseconds, and medians are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from loadtest.arrivals import schedule
from loadtest.workloads import Workload, WorkloadSettings
from tests.e2e.target import serving
from tests.loadtest.asyncio_client import Seen, relaying, send_all
from tests.loadtest.locust_runs import LocustRun, run_locust
from tests.loadtest.scripted_triton import Addresses, scripted_triton

TOLERANCE = 0.02


def lengths(input_tokens: int, output_tokens: int) -> list[str]:
    return [
        "--input-tokens", str(input_tokens), "--output-tokens", str(output_tokens),
        "--length-cv", "0", "--seed", "1",
    ]  # fmt: skip


def assert_agree(run: LocustRun, seen: Sequence[Seen]) -> None:
    assert len(run.with_status("ok")) == len(run.records) == len(seen) >= 3
    tokens = [sum(r.output_tokens) for r in sorted(run.records, key=lambda r: r.index)]
    assert tokens == [each.tokens for each in seen]
    theirs = {
        "TTFT": median(each.ttft_s for each in seen),
        "TPOT": median(each.tpot_s for each in seen),
        "e2e": median(each.e2e_s for each in seen),
    }
    ours = {name: run.latency(name)["p50"] for name in theirs}
    assert ours == pytest.approx(theirs, rel=TOLERANCE)


def test_against_a_scripted_server(tmp_path: Path) -> None:
    workload = Workload(
        WorkloadSettings(name="chat", seed=1, input_tokens=100, output_tokens=24, length_cv=0)
    )
    times_s = schedule("poisson", rate=8, duration_s=4, seed=1).tolist()
    prompts = [(r.input_ids, r.max_tokens) for r in map(workload.request, range(len(times_s)))]

    load = ["--arrival", "poisson", "--rate", "8", "--run-time", "4s", *lengths(100, 24)]

    async def both(target: Addresses) -> tuple[LocustRun, list[Seen]]:
        return await asyncio.gather(
            asyncio.to_thread(run_locust, target, tmp_path / "run", *load),
            send_all(target.grpc, prompts, times_s),
        )

    with scripted_triton(ttft_s=0.3, gap_s=0.03) as target:
        run, seen = asyncio.run(both(target))

    assert_agree(run, seen)
    # And both see what the server was told to do; its own lateness is no error of theirs.
    assert run.latency("TTFT")["p50"] == pytest.approx(0.3, rel=0.1)
    assert run.latency("TPOT")["p50"] == pytest.approx(0.03, rel=0.1)
    assert run.latency("e2e")["p50"] == pytest.approx(0.3 + 23 * 0.03, rel=0.1)


@pytest.mark.e2e
def test_in_front_of_the_real_server(tmp_path: Path) -> None:
    # Long prompts, so that the first token takes a while; one at a time, however slow the machine.
    load = ["--users", "1", "--run-time", "6s", *lengths(1200, 24)]

    async def both(address: str) -> tuple[LocustRun, list[Seen]]:
        async with relaying(address) as (relay, own_address):
            target = Addresses(grpc=own_address, http="http://unused:1")
            run = await asyncio.to_thread(run_locust, target, tmp_path / "run", *load)
            return run, [relay.seen[index] for index in sorted(relay.seen)]

    with serving(tmp_path, "batched") as target:
        run, seen = asyncio.run(both(target.settings.grpc_url))

    assert {sum(record.output_tokens) for record in run.records} == {24}
    assert {record.input_tokens for record in run.records} == {1200}
    assert_agree(run, seen)
