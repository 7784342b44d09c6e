"""A tritonserver process of our own: started until a token comes out, watched, drained.

`octavo serve`, the end-to-end tests and the benchmarks start their servers here:

    with EmbeddedServer(ServerSettings(repository=..., model=..., ports=Ports.free())) as server:
        ... server.settings.http_url ...
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from octavo.cli import probes, processes, server_log, shared_memory
from octavo.cli.paths import cache_dir
from octavo.cli.ports import busy_ports
from octavo.cli.server_folder import prepare
from octavo.cli.server_settings import (
    ServerSettings,
    has_gpu,
    server_command,
    server_environment,
)
from octavo.errors import OctavoError

_STUB_NAME = "triton_python_backend_stub"
_POLL_S = 0.05
_KILL_TIMEOUT_S = 10.0
_IDLE_S = 2.5  # without requests: more than twice the time between two flushes of the metrics
_LEAVE_S = 4.0  # what an idle server without connections takes to leave by itself


class ServerStartError(OctavoError):
    """The server did not come to its first token.

    `retryable`: the process died, or could not be reached, for no reason that must come again.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def _silent(_: str) -> None:
    pass


class EmbeddedServer:
    """One server at a time; start() after stop() starts a new one. Not for several threads."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.log_file: Path = settings.log_file or server_log.new_log_file()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._stubs: list[int] = []
        self._shm_prefix = ""

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(
        self,
        on_progress: Callable[[str], None] = _silent,
        on_retry: Callable[[str], None] = _silent,
    ) -> None:
        """Returns once a token came out. Raises ServerStartError; then nothing is left behind."""
        assert self._process is None, "the server is already started"
        shared_memory.clear(shared_memory.stale_regions([shared_memory.own_prefix()]))
        try:
            try:
                self._start_once(on_progress)
            except ServerStartError as error:
                if not error.retryable:
                    raise
                self.kill()
                on_retry(str(error))
                with suppress(FileNotFoundError):
                    self.log_file.replace(self.log_file.with_suffix(".first.log"))
                self._start_once(on_progress)
        except BaseException:  # also Ctrl-C during a start: no process may stay
            self.kill()
            raise

    def failure(self, *, ask_engine: bool = True) -> str | None:
        """Why this server cannot serve any more, or None.

        A dead stub leaves this server's health at 200 for good, so the processes themselves are
        watched, and the metric by which the engine tells of a fatal error inside a living stub.
        """
        if self._process is None:
            return "the server is not started"
        code = self._process.poll()
        if code is not None:
            return f"tritonserver (process {self._process.pid}) {_how_it_ended(code)}"
        for stub in self._stubs:
            if not processes.is_alive(stub):
                return f"the engine's process (stub {stub}) died"
        if ask_engine and probes.engine_up(self.settings.metrics_url) is False:
            return "the engine reports a fatal error (octavo_engine_up is 0)"
        return None

    def stop(self) -> bool:
        """Lets running requests finish, within the drain bound. True if all of them could."""
        if self._process is None:
            return True
        clean = False
        # A server whose stub is dead would only wait for it until its exit timeout.
        if self.failure(ask_engine=False) is None:
            clean = self._drain(self._process)
        self.kill()
        return clean

    def kill(self) -> None:
        """Ends the server and its stubs at once and removes their shared memory. Idempotent."""
        if self._process is not None:
            # The server leads a process group of its own, which its stubs are in.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_KILL_TIMEOUT_S)
            self._process = None
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        self._stubs = []
        if not self._shm_prefix:
            return
        # Command lines carry the launch's prefix: it finds a server too whose start was cut short.
        deadline_s = time.monotonic() + _KILL_TIMEOUT_S
        while (left := processes.with_argument(self._shm_prefix)) and time.monotonic() < deadline_s:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)
        shared_memory.clear(shared_memory.stale_regions([self._shm_prefix], min_age_s=0))
        self._shm_prefix = ""

    def _drain(self, process: subprocess.Popen[bytes]) -> bool:
        """True once no request is left.

        The 2.51 server, asked to leave, also waits for idle connections and idle gRPC streams of
        its clients: until its timeout, and then it calls its exit a failure. Its metrics stay
        up meanwhile, and tell when there is nothing more to wait for.
        """
        process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        idle_since_s: float | None = None
        while (now_s := time.monotonic()) < asked_s + self.settings.exit_timeout_s + 1:
            if process.poll() is not None:
                return process.returncode == 0
            in_flight = probes.requests_in_flight(self.settings.metrics_url)
            if in_flight:
                idle_since_s = None
            elif in_flight == 0 and idle_since_s is None:
                idle_since_s = now_s
            if idle_since_s is not None and now_s > max(idle_since_s + _IDLE_S, asked_s + _LEAVE_S):
                return True
            time.sleep(_POLL_S)
        return False

    def _start_once(self, on_progress: Callable[[str], None]) -> None:
        settings = self.settings
        on_progress("starting tritonserver")
        for busy in busy_ports(settings.ports, settings.host):
            raise ServerStartError(f"port {busy.port}: {busy.reason}")
        folder = prepare(settings.server_dir or cache_dir())
        self._shm_prefix = shared_memory.launch_prefix()
        command = server_command(
            settings,
            folder,
            closed_key=secrets.token_hex(16),
            shm_prefix=self._shm_prefix,
            gpu=has_gpu(),
        )
        with self.log_file.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    env=server_environment(settings, folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # The terminal's Ctrl-C is for the launcher, which then drains the server.
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerStartError(f"{folder.binary}: {error.strerror}") from None
        self._guard = _guard(self._process.pid)
        deadline_s = time.monotonic() + settings.ready_timeout_s
        self._wait_until_healthy(deadline_s, on_progress)
        on_progress("waiting for the first token")
        self._wait_for_token(deadline_s)
        self._stubs = self._find_stubs()

    def _wait_until_healthy(self, deadline_s: float, on_progress: Callable[[str], None]) -> None:
        loading = False
        while not probes.is_healthy(self.settings.http_url):
            self._require_running()
            self._require_time(deadline_s, "was not ready")
            if not loading and self._find_stubs():
                loading = True
                on_progress("loading the model")
            time.sleep(_POLL_S)
        self._require_running()  # somebody else's server may have answered on our port

    def _wait_for_token(self, deadline_s: float) -> None:
        while True:
            timeout_s = max(1.0, deadline_s - time.monotonic())
            try:
                probes.first_token(self.settings.generate_stream_url, timeout_s)
                return
            except TimeoutError:
                self._require_time(deadline_s, "made no token")
            except OSError:  # the connection broke: the server died, or it is not up to it yet
                self._require_running()
                self._require_time(deadline_s, "made no token")
                time.sleep(_POLL_S)
            except probes.TokenError as error:
                stub_died = "is not healthy" in str(error)
                raise ServerStartError(f"first token: {error}", retryable=stub_died) from None

    def _require_running(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        refusal = server_log.refusal(self.log_file)
        if refusal is not None:
            raise ServerStartError(refusal)
        cause = server_log.cause(self.log_file) or "no cause in its log"
        raise ServerStartError(
            f"tritonserver {_how_it_ended(code)}: {cause}",
            retryable=not server_log.will_come_again(cause),
        )

    def _require_time(self, deadline_s: float, what: str) -> None:
        if time.monotonic() > deadline_s:
            raise ServerStartError(
                f"the server {what} within {self.settings.ready_timeout_s:g} s (--ready-timeout)"
            )

    def _find_stubs(self) -> list[int]:
        assert self._process is not None
        return [
            pid
            for pid in processes.children(self._process.pid)
            if _STUB_NAME in processes.command_line(pid)
        ]


def _guard(group: int) -> subprocess.Popen[bytes]:
    """Ends a process group once this process is gone, however it went: its input ends then."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$0"', str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
