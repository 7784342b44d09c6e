"""Engine and request statistics as Triton metrics, flushed as deltas about once a second.

Each call of a Triton metric is a round trip between processes, and a Triton histogram takes
one per observed value: so all is counted in Python, and a histogram becomes three counter
families, `_bucket{le}`, `_sum` and `_count`, that read like Prometheus's own.
"""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import triton_python_backend_utils as pb_utils

from octavo import __version__
from octavo.engine import Engine
from octavo.scheduling.sequence import FinishReason
from octavo.serving.billing import Billing
from octavo.serving.cost_metrics import collect_cost
from octavo.serving.kv_metrics import collect_kv
from octavo.serving.metric_table import METRICS, Kind, Sample
from octavo.serving.quality_metrics import collect_quality
from octavo.stats import Histogram, RequestStats

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 1.0

_HELP = {metric.name: metric.help for metric in METRICS}


def collect(engine: Engine, requests: RequestStats, billing: Billing) -> Iterator[Sample]:
    """Every metric's present value: (name, kind, labels, value)."""
    stats, gauges = engine.stats, engine.gauges
    # All of them from the start: to rate(), a series that is born with its first events has none.
    for reason in FinishReason:
        count = requests.finished[reason.value]
        yield "octavo_requests_total", "counter", {"finish_reason": reason.value}, count
    for phase, busy_s in stats.busy_s.items():
        yield "octavo_busy_seconds_total", "counter", {"phase": phase}, busy_s
    for tenant, (prompt_tokens, generation_tokens) in sorted(requests.tenants.items()):
        labels = {"tenant": tenant}
        yield "octavo_tenant_prompt_tokens_total", "counter", labels, prompt_tokens
        yield "octavo_tenant_generation_tokens_total", "counter", labels, generation_tokens
    for (slo, met), count in requests.slo_requests.items():
        labels = {"slo": slo, "outcome": "met" if met else "missed"}
        yield "octavo_slo_requests_total", "counter", labels, count
    for name, total in (
        ("octavo_invalid_requests_total", requests.invalid),
        ("octavo_good_requests_total", requests.good_requests),
        ("octavo_good_tokens_total", requests.good_tokens),
        ("octavo_prompt_tokens_total", stats.prompt_tokens),
        ("octavo_generation_tokens_total", stats.generation_tokens),
        ("octavo_steps_total", stats.steps),
        ("octavo_prefill_chunks_total", engine.scheduler.counters.prefill_chunks),
    ):
        yield name, "counter", {}, total
    for name, value in (
        ("octavo_num_requests_running", gauges.num_running),
        ("octavo_num_requests_waiting", gauges.num_waiting),
        ("octavo_longest_wait_seconds", gauges.longest_wait_s),
        ("octavo_engine_up", float(engine.is_alive)),
        ("octavo_engine_start_timestamp_seconds", engine.loaded_at_s),
    ):
        yield name, "gauge", {}, value
    yield "octavo_engine_info", "gauge", _what_runs(engine), 1
    yield from collect_kv(engine)
    yield from collect_quality(engine.quality)
    yield from collect_cost(engine, requests, billing)
    for name, histogram in (
        ("octavo_kv_block_lifetime_seconds", engine.scheduler.allocator.lifetime_s),
        (
            "octavo_kv_block_idle_before_eviction_seconds",
            engine.scheduler.allocator.idle_before_eviction_s,
        ),
        ("octavo_request_queue_time_seconds", stats.queue_time_s),
        ("octavo_time_to_first_token_seconds", requests.ttft_s),
        ("octavo_inter_token_latency_seconds", requests.itl_s),
        ("octavo_time_per_output_token_seconds", requests.tpot_s),
        ("octavo_e2e_request_latency_seconds", requests.e2e_s),
    ):
        yield from _histogram_samples(name, histogram)


def _what_runs(engine: Engine) -> dict[str, str]:
    return {
        "engine_version": __version__,
        "checkpoint": engine.config.model.name,
        "device": engine.runner.device.type,
    }


def _histogram_samples(name: str, histogram: Histogram) -> Iterator[Sample]:
    bounds = [f"{bound:g}" for bound in histogram.bounds] + ["+Inf"]
    for bound, count in zip(bounds, histogram.cumulative(), strict=True):
        yield f"{name}_bucket", "counter", {"le": bound}, count
    yield f"{name}_sum", "counter", {}, histogram.sum
    yield f"{name}_count", "counter", {}, histogram.count


class MetricsExporter:
    """Flushes `collect` to Triton from a thread of its own."""

    def __init__(
        self, engine: Engine, requests: RequestStats, billing: Billing, labels: dict[str, str]
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._billing = billing
        self._labels = labels
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._flushed: dict[tuple[str, str], float] = {}
        self._stopping = threading.Event()
        self.flush()
        self._thread = threading.Thread(target=self._run, name="octavo-metrics", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Brings Triton's metrics up to date; costs a call for each one that has changed."""
        for name, kind, labels, value in collect(self._engine, self._requests, self._billing):
            key = (name, str(labels))
            before = self._flushed.get(key)
            if before == value:
                continue
            metric = self._metrics.get(key) or self._create(key, name, kind, labels)
            if kind == "gauge":
                metric.set(value)
            elif value > (before or 0):
                metric.increment(value - (before or 0))
            self._flushed[key] = value

    def stop(self) -> None:
        """A last flush. Metrics go before their families, as Triton asks."""
        self._stopping.set()
        self._thread.join()
        self.flush()
        self._metrics.clear()
        self._families.clear()

    def _create(self, key: tuple[str, str], name: str, kind: Kind, labels: dict[str, str]) -> Any:
        family = self._families.get(name)
        if family is None:
            plain = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            family = self._families[name] = pb_utils.MetricFamily(
                name=name,
                description=_HELP[plain],
                kind=getattr(pb_utils.MetricFamily, kind.upper()),
            )
        metric = self._metrics[key] = family.Metric(labels={**self._labels, **labels})
        return metric

    def _run(self) -> None:
        while not self._stopping.wait(FLUSH_INTERVAL_S):
            try:
                self.flush()
            except Exception:
                log.exception("metrics could not be flushed")
