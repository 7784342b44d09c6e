from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date

import pytest

from tests.e2e.target import Target, serving
from tests.monitoring.load import under_load
from tests.monitoring.prometheus import Prometheus, binary, scraping
from tests.monitoring.shipped import recorded
from tests.quality.texts import copy_of_tiny, gate, write_text

USD_A_WEEK_AGO = 0.001  # of a million good tokens, so that they cost more now
_WEEK_S = 7 * 86_400


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Little memory, so that sequences are preempted, and few places, so that requests queue; of
    8 bits, with evidence that they are good enough."""
    binary("prometheus")  # before the server is started for nothing
    folder = tmp_path_factory.mktemp("server")
    model = copy_of_tiny(folder / "model")
    own = {"kv_cache_dtype": "int8", "dtype": "float32"}
    text = write_text(folder / "text.jsonl", longest=1_100)
    gate(model, text, model, baseline=str(model), **own)
    with serving(
        folder,
        "vllm",
        model=model,
        kv_cache_dtype="int8",
        kv_cache_bytes="576KiB",
        max_num_seqs=4,
        max_num_waiting=0,
        kv_tiers_host_bytes="16MiB",
        price_usd_per_hour=3.2,
        price_as_of=date.today().isoformat(),
    ) as target:
        yield target


@pytest.fixture(scope="module")
def hurried(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the server before there is load and then under it, with every duration of the shipped
    files a twentieth: an alert for five minutes is one for fifteen seconds."""
    folder = tmp_path_factory.mktemp("hurried")
    with scraping(target.settings.ports.metrics, folder, hurry=20) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def watched(
    target: Target, hurried: Prometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Scrapes a server under load, by the shipped files, with enough behind it for the rules to
    have values, and what good tokens cost a week ago. Until the load no alert so much as waits."""
    wait_for_rule(hurried, "model:octavo_good_tokens:rate5m")
    assert not hurried.query("ALERTS")
    metrics_port = target.settings.ports.metrics
    folder = tmp_path_factory.mktemp("prometheus")
    name, then_s = "model:octavo_usd_per_million_good_tokens:ratio_rate1h", time.time() - _WEEK_S
    past = f"# TYPE {name} gauge\n" + "".join(
        f'{name}{{model="llm"}} {USD_A_WEEK_AGO} {then_s + minute * 60:.0f}\n'
        for minute in range(-5, 10)
    )
    with under_load(target), scraping(metrics_port, folder, past=past) as prometheus:
        for expression in recorded():
            wait_for_rule(prometheus, expression.name)
        yield prometheus


def wait_for_rule(prometheus: Prometheus, name: str) -> None:
    """Until a recorded series has a value."""
    deadline_s = time.monotonic() + 40
    while not prometheus.query(f"{name} >= 0"):
        assert time.monotonic() < deadline_s, (name, prometheus.get("targets"))
        time.sleep(0.5)
