"""What Locust's own statistics and web page get to see of a request."""

from __future__ import annotations

from locust.env import Environment

from loadtest.records import Record
from loadtest.settings import RunSettings

_PROTOCOLS = {"grpc": "gRPC", "http": "HTTP"}


def report_record(environment: Environment, settings: RunSettings, record: Record) -> None:
    """Fires Locust's request event, with the end-to-end latency in ms and the output tokens as
    length, and adds rows for TTFT (ms) and TPOT (µs, as Locust rounds to whole ms).

    The rows go beside the event: fired too, they would count every request three times in
    Locust's total. Planned cancellations, and requests cut off by the end, are no failures and
    have no latency: Locust does not see them.
    """
    if record.status not in ("ok", "error", "dropped"):
        return
    failed = RuntimeError(record.error or record.status) if record.status != "ok" else None
    sent_ns = record.sent_ns if record.sent_ns is not None else record.intended_ns
    last_ns = record.output_ns[-1] if record.output_ns else sent_ns
    environment.events.request.fire(
        request_type=_PROTOCOLS[settings.transport],
        name=record.workload,
        response_time=(last_ns - sent_ns) / 1e6,
        response_length=sum(record.output_tokens),
        exception=failed,
        context={},
    )
    first_ns, num_tokens = record.first_text_ns, sum(record.output_tokens)
    if failed or first_ns is None:
        return
    entries = environment.stats.entries
    entries[(record.workload, "TTFT ms")].log(round((first_ns - sent_ns) / 1e6), 0)
    if num_tokens > 1:
        tpot_us = round((last_ns - first_ns) / (num_tokens - 1) / 1e3)
        entries[(record.workload, "TPOT µs")].log(tpot_us, 0)
