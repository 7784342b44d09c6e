from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.target import Target, serving
from tests.monitoring.load import under_load
from tests.monitoring.prometheus import Prometheus, binary, scraping
from tests.quality.texts import copy_of_tiny, gate, write_text


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Little memory, so that sequences are preempted, and few places, so that requests queue; of
    8 bits, with evidence that they are good enough."""
    binary("prometheus")  # before the server is started for nothing
    folder = tmp_path_factory.mktemp("server")
    model = copy_of_tiny(folder / "model")
    own = {"kv_cache_dtype": "int8", "dtype": "float32"}
    gate(model, write_text(folder / "text.jsonl"), model, baseline=str(model), **own)
    with serving(
        folder,
        "vllm",
        model=model,
        kv_cache_dtype="int8",
        kv_cache_bytes="576KiB",
        max_num_seqs=4,
        max_num_waiting=0,
        kv_tiers_host_bytes="16MiB",
    ) as target:
        yield target


@pytest.fixture(scope="module")
def watched(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes a server under load, with enough behind it for the rules to have values."""
    metrics_port = target.settings.ports.metrics
    folder = tmp_path_factory.mktemp("prometheus")
    with under_load(target), scraping(metrics_port, folder) as prometheus:
        deadline_s = time.monotonic() + 40
        while not prometheus.query("model:octavo_time_per_output_token_seconds:p99_5m >= 0"):
            assert time.monotonic() < deadline_s, prometheus.get("targets")
            time.sleep(0.5)
        yield prometheus
