"""A run across Locust's processes: who starts it, who sends what, when it is over.

A process that sends (Locust alone, or a worker) has a Session; the master has none. Locust's
master leaves its workers half a second to end, so the end is agreed on by messages of our own,
within `test_stopping`, which Locust waits for:

    master  --start(settings, folder, share)-->  worker   before Locust's own spawn message
    master  --finish(drain_timeout_s)-------->   worker
    master  <------------finished------------   worker    its records are on disk
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import MasterRunner, WorkerRunner

from loadtest.folders import new_folder
from loadtest.locust_events import report_record
from loadtest.session import Session, Share
from loadtest.settings import RunSettings
from loadtest.streams import StreamError

log = logging.getLogger(__name__)

_START, _FINISH, _FINISHED = "octavo-start", "octavo-finish", "octavo-finished"
_PROGRESS_INTERVAL_S = 5.0
_MASTER_GRACE_S = 20.0


class Coordinator:
    """Of one process. `on_finished` gets the folder of a run once all its records are there; it
    is called in the master, or in the only process."""

    def __init__(self, environment: Environment, on_finished: Callable[[Path], None]) -> None:
        self.session: Session | None = None
        self._environment = environment
        self._on_finished = on_finished
        self._folder: Path | None = None
        self._ended: Event | None = None  # set once the run that is ending is reported
        self._assigned: tuple[RunSettings, Share, Path] | None = None
        self._unfinished: set[str] = set()
        self._progress: gevent.Greenlet | None = None
        runner = environment.runner
        if isinstance(runner, MasterRunner):
            runner.register_message(_FINISHED, self._on_worker_finished)
        elif isinstance(runner, WorkerRunner):
            runner.register_message(_START, self._on_start)
            runner.register_message(_FINISH, self._on_finish, concurrent=True)

    def start(self, **_: Any) -> None:
        """Locust's test_start."""
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            if self._assigned is None:
                log.error("this worker came after the run had started: it sends nothing")
                return
            (settings, share, folder), self._assigned = self._assigned, None
            self._open(settings, share, folder)
            return
        options = self._environment.parsed_options
        assert options is not None
        try:
            settings = RunSettings.from_options(options, self._environment.host)
            self._folder = new_folder(options.output, settings.workload.name)
        except ValueError as error:
            self._refuse(str(error))
            return
        if isinstance(runner, MasterRunner):
            self._start_workers(runner, settings, self._folder)
        elif not self._open(settings, Share(), self._folder):
            self._folder = None
            return
        self._progress = gevent.spawn(self._show_progress, settings)

    def finish(self, *, cut_off: bool = False, **_: Any) -> None:
        """Locust's test_stopping: at the end of the run time, or at the web page's button. With
        `cut_off`, at Ctrl-C, running requests get no time, even if the run is ending already.
        Returns once the run is reported; does nothing without one."""
        options = self._environment.parsed_options
        assert options is not None
        drain_timeout_s = 0.0 if cut_off else float(options.drain_timeout)
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            self._finish_worker(runner, drain_timeout_s)
            return
        if self._folder is None:
            return
        is_first, self._ended = self._ended is None, self._ended or Event()
        if is_first or cut_off:
            if isinstance(runner, MasterRunner):
                self._finish_workers(runner, drain_timeout_s)
            elif self.session is not None:
                self.session.finish(drain_timeout_s)
        if is_first:
            self._report(self._folder, self._ended)
        else:
            self._ended.wait()

    def _report(self, folder: Path, ended: Event) -> None:
        if self._progress is not None:
            self._progress.kill()
        try:
            self._on_finished(folder)
        except ValueError as error:  # no process has written anything
            log.error("loadtest: %s", error)
            self._environment.process_exit_code = 1
        finally:
            self._folder = self._ended = None
            ended.set()

    def _open(self, settings: RunSettings, share: Share, folder: Path) -> bool:
        def on_record(record: Any) -> None:
            report_record(self._environment, settings, record)

        try:
            self.session = Session(settings, share, folder, on_record)
        except (StreamError, OSError, ValueError) as error:
            self._refuse(str(error))
            return False
        return True

    def _refuse(self, reason: str) -> None:
        """A run that cannot start. Locust would go on without it."""
        log.error("loadtest: %s", reason)
        self.session = None
        self._environment.process_exit_code = 1
        options = self._environment.parsed_options
        runner = self._environment.runner
        if runner is not None and options is not None:
            gevent.spawn(runner.quit if options.headless else runner.stop)

    def _start_workers(self, runner: MasterRunner, settings: RunSettings, folder: Path) -> None:
        workers = sorted(node.id for node in runner.clients.ready)
        self._unfinished = set(workers)
        for number, client_id in enumerate(workers):
            data = {
                "settings": settings.as_json(),
                "worker": number,
                "workers": len(workers),
                "folder": str(folder),
            }
            runner.send_message(_START, data, client_id)

    def _finish_workers(self, runner: MasterRunner, drain_timeout_s: float) -> None:
        for client_id in self._unfinished & set(runner.clients):
            runner.send_message(_FINISH, {"drain_timeout_s": drain_timeout_s}, client_id)
        deadline_s = time.monotonic() + drain_timeout_s + _MASTER_GRACE_S
        while self._unfinished & set(runner.clients) and time.monotonic() < deadline_s:
            gevent.sleep(0.05)
        for client_id in self._unfinished:
            log.error("worker %s did not say that its records are complete", client_id)

    def _on_start(self, environment: Environment, msg: Message) -> None:
        data = msg.data
        settings = RunSettings.from_json(data["settings"])
        share = Share(data["worker"], data["workers"])
        self._assigned = (settings, share, Path(data["folder"]))

    def _on_finish(self, environment: Environment, msg: Message) -> None:
        assert isinstance(environment.runner, WorkerRunner)
        self._finish_worker(environment.runner, msg.data["drain_timeout_s"])

    def _finish_worker(self, runner: WorkerRunner, drain_timeout_s: float) -> None:
        if self.session is not None and self.session.finish(drain_timeout_s):
            runner.send_message(_FINISHED)

    def _on_worker_finished(self, environment: Environment, msg: Message) -> None:
        self._unfinished.discard(msg.node_id)

    def _show_progress(self, settings: RunSettings) -> None:
        started_s = time.monotonic()
        total = self._environment.stats.total
        while True:
            gevent.sleep(_PROGRESS_INTERVAL_S)
            log.info(
                "loadtest: %.0f of %.0f s, %d requests answered, %d of them with a failure",
                min(time.monotonic() - started_s, settings.duration_s),
                settings.duration_s,
                total.num_requests,
                total.num_failures,
            )
