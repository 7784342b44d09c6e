"""One request from its sending to its last output."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gevent

from loadtest.records import Record
from loadtest.streams import Output, StreamError, Streams
from loadtest.workloads import GenerationRequest


class CutOff(gevent.GreenletExit):  # type: ignore[misc]
    """Thrown into a request's greenlet when the run ends before the request."""


class _Cancel(BaseException):
    """The workload's own cancellation."""


def measure(
    streams: Streams,
    request: GenerationRequest,
    encoded: Any,
    *,
    start_ns: int,
    intended_ns: int | None,
    timeout_s: float,
    keep: Callable[[Record], None],
) -> None:
    """Sends `request`, in the form `streams` encoded, and hands its record to `keep`, whatever
    becomes of it.

    Times in the record count from `start_ns` of time.perf_counter_ns; `intended_ns` counts from
    there too, and None means now. A CutOff ends here; other exceptions that kill the greenlet
    go on after `keep`.
    """
    record = Record(
        index=request.index,
        workload=request.workload,
        intended_ns=_now_ns(start_ns) if intended_ns is None else intended_ns,
        max_tokens=request.max_tokens,
    )

    def on_send() -> None:
        record.sent_ns = _now_ns(start_ns)
        if intended_ns is None:
            record.intended_ns = record.sent_ns

    timeout = gevent.Timeout.start_new(timeout_s, StreamError(f"no end within {timeout_s:g} s"))
    cancel: gevent.Timeout | None = None
    try:
        if request.cancel_after_s is not None:
            cancel = gevent.Timeout.start_new(request.cancel_after_s, _Cancel())
        with closing(streams.outputs(encoded, on_send)) as outputs:
            for output in outputs:
                _add(record, output, start_ns)
        record.status = "ok"
        if record.finish_reason is None:
            raise StreamError("the stream ended without a finish reason")
    except StreamError as error:
        record.status, record.error = "error", str(error)
    except _Cancel:
        record.status = "cancelled"
    except CutOff:
        record.status = "cut_off"
    finally:
        timeout.close()
        if cancel is not None:
            cancel.close()
        record.ended_ns = _now_ns(start_ns)
        keep(record)


def _now_ns(start_ns: int) -> int:
    return time.perf_counter_ns() - start_ns


def _add(record: Record, output: Output, start_ns: int) -> None:
    at_ns = output.at_ns - start_ns
    record.output_ns.append(at_ns)
    record.output_tokens.append(output.num_tokens)
    if output.has_text and record.first_text_ns is None:
        record.first_text_ns = at_ns
    record.input_tokens = output.input_tokens or record.input_tokens
    if output.cached_tokens is not None:
        record.cached_tokens = output.cached_tokens
    record.finish_reason = output.finish_reason or record.finish_reason
