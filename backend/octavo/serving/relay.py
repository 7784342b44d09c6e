"""Carries requests of the unary model's process to the engine's process, and answers back.

Triton runs each model in a process of its own, and there is one engine. A socket between the two
brings the unary model's requests to the same admission as the others. The messages are pickles:
the socket lies in a folder that only this user may enter.

    front → engine    Submit (what one execute() was given), Cancel
    engine → front    Admitted (that Submit is, and there is room for another), Result
"""

import errno
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.serving.incoming import ErrorCode, IncomingRequest, Sender

log = logging.getLogger(__name__)

_STALE_AFTER_S = 60.0

Arrival = tuple[IncomingRequest, Sender]
Admit = Callable[[list[Arrival]], None]


@dataclass(frozen=True, slots=True)
class Submit:
    requests: dict[int, IncomingRequest]  # by an id of the front's


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: int


@dataclass(frozen=True, slots=True)
class Admitted:
    pass


@dataclass(frozen=True, slots=True)
class Result:
    """A request's only response: outputs, or an error."""

    request_id: int
    outputs: dict[str, NDArray[Any]]
    error: tuple[str, ErrorCode] | None = None


def socket_path(model_name: str) -> Path:
    """Where the engine of `model_name` listens: known to the stubs of one server, which are
    children of one process. Raises ConfigError if others could reach it."""
    folder = Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{folder}: should be a folder of this user's alone (mode 0700)")
    return folder / f"{os.getppid()}-{model_name}.sock"


def hang_up(connection: Connection) -> None:
    """Ends a connection for both sides, also for a thread that is reading from it (which a mere
    close does not reach)."""
    if connection.closed:
        return
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class RelaySender:
    """The engine's side of one request's way back."""

    def __init__(self, relay: "_Connection", request_id: int) -> None:
        self._relay = relay
        self._request_id = request_id
        self.cancelled = False

    def send(self, outputs: dict[str, NDArray[Any]], *, is_final: bool) -> None:
        assert is_final, "a unary request has one response"
        self._relay.finish(Result(self._request_id, outputs))

    def fail(self, message: str, code: ErrorCode) -> None:
        self._relay.finish(Result(self._request_id, {}, (message, code)))

    def is_cancelled(self) -> bool:
        return self.cancelled


class _Connection:
    """One front's: a thread reads it, another admits what it brings."""

    def __init__(self, connection: Connection, admit: Admit) -> None:
        self._connection = connection
        self._admit = admit
        self._write_lock = threading.Lock()
        self._senders: dict[int, RelaySender] = {}
        self._arrived: SimpleQueue[list[Arrival] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read_loop, name="octavo-relay", daemon=True),
            threading.Thread(target=self._admit_loop, name="octavo-relay-admit", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, result: Result) -> None:
        self._senders.pop(result.request_id, None)
        self._write(result)

    def close(self) -> None:
        hang_up(self._connection)
        for thread in self._threads:
            thread.join()

    def _write(self, message: Result | Admitted) -> None:
        try:
            with self._write_lock:
                self._connection.send(message)
        except OSError as exc:  # the front is gone, and with it whoever waits for this
            log.warning("an answer could not be relayed: %s", exc)

    def _read_loop(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, Submit):
                    self._arrived.put(self._arrivals(message))
                elif sender := self._senders.get(message.request_id):
                    sender.cancelled = True
        except (EOFError, OSError):
            for sender in list(self._senders.values()):
                sender.cancelled = True
        finally:
            self._connection.close()
            self._arrived.put(None)

    def _arrivals(self, submit: Submit) -> list[Arrival]:
        senders = {request_id: RelaySender(self, request_id) for request_id in submit.requests}
        self._senders.update(senders)
        return [(request, senders[i]) for i, request in submit.requests.items()]

    def _admit_loop(self) -> None:
        while (arrivals := self._arrived.get()) is not None:
            self._admit(arrivals)
            self._write(Admitted())


def _remove_stale_sockets(folder: Path) -> None:
    """Those that killed servers have left: nobody listens. Young ones may be about to."""
    for path in folder.glob("*.sock"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < _STALE_AFTER_S:
                continue
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                    path.unlink()


class RelayServer:
    """The engine's end. Fronts come and go."""

    def __init__(self, path: Path, admit: Admit) -> None:
        _remove_stale_sockets(path.parent)
        path.unlink(missing_ok=True)  # a killed server's, whose process id has come round again
        self._admit = admit
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._connections: list[_Connection] = []
        self._thread = threading.Thread(
            target=self._accept_loop, name="octavo-relay-accept", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Hangs up. Fronts tell those who still wait that the server has gone."""
        self._path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread, as close does not
        self._thread.join()
        self._socket.close()
        for connection in self._connections:
            connection.close()

    def _accept_loop(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:  # shut down
                return
            self._connections.append(_Connection(Connection(accepted.detach()), self._admit))
