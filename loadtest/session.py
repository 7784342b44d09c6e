"""One process's share of a run: its requests, in flight and on record."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import psutil
from gevent.event import Event
from gevent.pool import Group

from loadtest.arrivals import partition
from loadtest.dispatcher import dispatch
from loadtest.measure import CutOff, measure
from loadtest.records import Record, Recorder
from loadtest.settings import RunSettings
from loadtest.streams import GrpcStreams, SseStreams, Streams
from loadtest.versions import versions
from loadtest.workloads import GenerationRequest, Workload

# An open-loop run that is told to end this close to its schedule's end still sends the rest:
# Locust's clock for --run-time starts a little before ours.
_END_SLACK_S = 3.0
# Between the start and the first arrival, so that Locust has done what it does at a start.
_LEAD_S = 0.5


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the processes that send this one is."""

    worker: int = 0
    workers: int = 1


class Session:
    """Started by the constructor; `finish` ends it and closes the records."""

    def __init__(
        self,
        settings: RunSettings,
        share: Share,
        folder: Path,
        on_record: Callable[[Record], None],
    ) -> None:
        """Raises StreamError if the server cannot be reached, FileExistsError if the folder
        holds this worker's records already."""
        self.settings = settings
        self.finishing = False
        self._share = share
        self._on_record = on_record
        self._workload = Workload(settings.workload)
        self._numbers = iter(range(share.worker, 2**62, share.workers))
        self._in_flight = Group()
        self._closed = Event()
        self._process = psutil.Process()
        self._streams = connect(settings)
        arrivals = list(self._arrivals())
        # Collections of what Locust and the libraries have loaded take tens of milliseconds.
        gc.collect()
        gc.freeze()
        self._process.cpu_percent()
        lead_ns = round(_LEAD_S * 1e9) if settings.is_open_loop else 0
        self._start_ns = time.perf_counter_ns() + lead_ns
        header = {
            "worker": share.worker,
            "workers": share.workers,
            "started_unix_ns": time.time_ns() + lead_ns,
            "settings": settings.as_json(),
            "versions": versions(),
        }
        self._recorder = Recorder(folder, share.worker, header)
        self._dispatcher: gevent.Greenlet | None = None
        if settings.is_open_loop:
            self._dispatcher = gevent.spawn(
                dispatch,
                arrivals,
                start_ns=self._start_ns,
                in_flight=self._in_flight,
                max_in_flight=settings.max_in_flight,
                prepare=self._prepare,
                send=self._send,
                drop=self._drop,
            )

    def send_next(self) -> None:
        """The closed loop: sends this process's next request and waits for its end."""
        sending = self._in_flight.spawn(self._send, self._prepare(next(self._numbers)), None)
        try:
            sending.join()
        finally:
            # The user was stopped while it waited, and so is its request.
            sending.kill(CutOff)

    def finish(self, drain_timeout_s: float) -> bool:
        """Sends no more, gives running requests `drain_timeout_s`, cuts off the others and
        closes the records. A further call waits for that, and 0 cuts short what it waits for.
        True for the call that did it."""
        if self.finishing:
            if not drain_timeout_s:
                self._in_flight.kill(CutOff)
            self._closed.wait()
            return False
        self.finishing = True
        cpu_percent = self._process.cpu_percent()
        ended_early = False
        if self._dispatcher is not None:
            left_s = self.settings.duration_s - (time.perf_counter_ns() - self._start_ns) / 1e9
            if drain_timeout_s and left_s < _END_SLACK_S:
                self._dispatcher.join(max(0.0, left_s) + 1)
            ended_early = not self._dispatcher.successful()
            self._dispatcher.kill()
        if drain_timeout_s:
            self._in_flight.join(drain_timeout_s)
        self._in_flight.kill(CutOff)
        self._recorder.end({"cpu_ratio": cpu_percent / 100, "ended_early": ended_early})
        self._streams.close()
        gc.unfreeze()
        self._closed.set()
        return True

    def _arrivals(self) -> Iterator[tuple[int, int]]:
        """Of the whole schedule, every `workers`-th."""
        if self.settings.is_open_loop:
            times = self.settings.schedule_ns()
            for index in partition(len(times), self._share.worker, self._share.workers):
                yield index, times[index]

    def _prepare(self, index: int) -> tuple[GenerationRequest, Any]:
        request = self._workload.request(index)
        return request, self._streams.encode(request)

    def _send(self, prepared: tuple[GenerationRequest, Any], intended_ns: int | None) -> None:
        measure(
            self._streams,
            *prepared,
            start_ns=self._start_ns,
            intended_ns=intended_ns,
            timeout_s=self.settings.request_timeout_s,
            keep=self._keep,
        )

    def _drop(self, prepared: tuple[GenerationRequest, Any], intended_ns: int) -> None:
        request, _ = prepared
        self._keep(
            Record(
                index=request.index,
                workload=request.workload,
                status="dropped",
                intended_ns=intended_ns,
                max_tokens=request.max_tokens,
            )
        )

    def _keep(self, record: Record) -> None:
        self._recorder.add(record)
        self._on_record(record)


def connect(settings: RunSettings) -> Streams:
    if settings.transport == "grpc":
        return GrpcStreams(settings.grpc_address, settings.model, settings.connections)
    return SseStreams(settings.host, settings.model)
