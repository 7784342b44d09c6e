"""What requests cost, on a real server with a price: receipts, /metrics, the request log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_client import Client
from tests.e2e.target import Target, prompt_ids, serving

USD_PER_HOUR = 3.6
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module", params=["batched", "vllm"])
def priced(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Target, Path]]:
    folder = tmp_path_factory.mktemp("priced")
    log = folder / "requests.jsonl"
    with serving(
        folder, request.param, price_usd_per_hour=USD_PER_HOUR, price_as_of="2026-11-20",
        request_log=log,
    ) as target:  # fmt: skip
        yield target, log


@pytest.mark.parametrize(
    ("protocol", "model", "seed"),
    [("grpc", "llm", 1), ("http", "llm", 2), ("http", "llm_unary", 3)],
)
def test_receipts_reach_the_client(
    priced: tuple[Target, Path], protocol: str, model: str, seed: int
) -> None:
    target, _ = priced
    url = getattr(target.settings, f"{protocol}_url")
    with Client(url, model=model) as client:
        ids = prompt_ids(200, seed=seed)
        first, again = (
            client.generate(ids, max_tokens=20, return_cost=True, tenant="blue", **GREEDY)
            for _ in range(2)
        )
    assert first.cost is not None and again.cost is not None
    assert first.cost.cached_tokens == 0 and first.cost.saved_usd == 0
    assert again.cost.cached_tokens == again.usage.cached_tokens == 192
    assert again.cost.saved_usd is not None and again.cost.saved_usd > 0
    assert first.cost.usd is not None
    busy_s = first.cost.prefill_s + first.cost.decode_s
    assert first.cost.usd == pytest.approx(busy_s * USD_PER_HOUR / 3600)
    assert first.cost.price_usd_per_hour == USD_PER_HOUR
    assert first.cost.price_as_of == "2026-11-20"


def test_the_bill_is_the_wall_clock_times_the_price(priced: tuple[Target, Path]) -> None:
    """Between two scrapes while nothing runs, where a flush is up to a second old."""
    target, _ = priced

    def bill() -> tuple[float, float]:
        return time.monotonic(), target.metrics().value("octavo_cost_usd_total")

    target.wait_until_idle()
    began_s, before_usd = bill()
    streams = [
        target.send(prompt_ids(60, seed), max_tokens=100, tenant=f"t{seed}") for seed in range(6)
    ]
    for stream in streams:
        stream.result()
    time.sleep(6)
    ended_s, after_usd = bill()
    spent_usd = (ended_s - began_s) * USD_PER_HOUR / 3600
    second_usd = USD_PER_HOUR / 3600
    assert after_usd - before_usd == pytest.approx(spent_usd, abs=1.3 * second_usd)
    metrics = target.metrics()
    for seed in range(6):
        assert metrics.value("octavo_cost_usd_total", tenant=f"t{seed}", phase="decode") > 0
    per_million = metrics.value("octavo_cost_per_million_tokens_usd", tokens="output")
    assert 0 < per_million <= metrics.value("octavo_cost_per_million_tokens_usd", tokens="good")
    assert metrics.value("octavo_price_usd_per_hour") == USD_PER_HOUR


def test_the_request_log_fills_while_requests_end(priced: tuple[Target, Path]) -> None:
    target, log = priced
    num_before = len(log.read_text(encoding="utf-8").splitlines())
    target.generate(prompt_ids(33, seed=9), max_tokens=5, tenant="green")
    deadline_s = time.monotonic() + 5
    while len(lines := log.read_text(encoding="utf-8").splitlines()) == num_before:
        assert time.monotonic() < deadline_s, "no line"
        time.sleep(0.05)
    (line,) = map(json.loads, lines[num_before:])
    assert (line["tenant"], line["prompt_tokens"], line["output_tokens"]) == ("green", 33, 5)
    assert line["finish_reason"] == "length" and 0 < line["ttft_s"] <= line["e2e_s"]
