"""The unary Triton model: infer() over HTTP and gRPC, answered by the engine of another model.

Triton refuses infer() to a decoupled model, so this one is not decoupled. It has no engine: each
request is relayed to the engine's process and answered when the result comes back. Imports no
torch, so that its process stays small.
"""

import itertools
import json
import logging
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Client, Connection
from typing import Any

import triton_python_backend_utils as pb_utils

from octavo.errors import OctavoError
from octavo.serving.incoming import ErrorCode, IncomingRequest, TritonSender, copy_request
from octavo.serving.relay import Admitted, Cancel, Result, Submit, hang_up, socket_path

log = logging.getLogger(__name__)

ENGINE_MODEL = "engine_model"  # the parameter of config.pbtxt that names the other model
CANCEL_POLL_S = 0.075


class _Pending:
    """A request that waits for its result. Its sender is asked and answered by different threads,
    and must not be touched after the answer."""

    def __init__(self, sender: TritonSender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._open = True

    def has_left(self) -> bool:
        """True if the question fails, too: then there is nobody to answer."""
        with self._lock:
            try:
                return self._open and self._sender.is_cancelled()
            except Exception:
                log.exception("a request could not be asked for")
                return True

    def answer(self, result: Result) -> None:
        """Never raises: the thread that brings the answers has those of others to bring."""
        if result.error is not None:
            return self.fail(*result.error)
        with self._lock:
            if not self._open:
                return
            self._open = False
            try:
                self._sender.send(result.outputs, is_final=True)
            except Exception:
                log.exception("an answer could not be sent")

    def fail(self, message: str, code: ErrorCode) -> None:
        with self._lock:
            if self._open:
                self._open = False
                self._sender.fail(message, code)


class UnaryModel:
    """What Triton's Python backend calls: initialize, execute, finalize."""

    def initialize(self, args: dict[str, str]) -> None:
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="octavo unary %(levelname)s %(message)s"
        )
        config = json.loads(args["model_config"])
        self._batched = config["max_batch_size"] > 0
        self._engine_model = config["parameters"][ENGINE_MODEL]["string_value"]
        try:
            self._path = socket_path(self._engine_model)
        except OctavoError as exc:
            raise pb_utils.TritonModelException(f"octavo: {exc}") from None
        self._ids = itertools.count()
        self._has_room = threading.Event()
        self._lock = threading.Lock()  # guards what follows, and the connection's writing end
        self._connection: Connection | None = None
        self._reader: threading.Thread | None = None  # of the newest connection
        self._pending: dict[int, _Pending] = {}
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll_loop, name="octavo-cancel", daemon=True)
        self._poller.start()

    def execute(self, requests: list[Any]) -> None:
        """Relays the requests, and holds Triton's thread until the engine has room for another:
        so this model's queue is as real as the other one's. Never raises."""
        submit: dict[int, IncomingRequest] = {}
        pending: dict[int, _Pending] = {}
        for request in requests:
            request_id = next(self._ids)
            pending[request_id] = _Pending(TritonSender(request))
            try:
                submit[request_id] = copy_request(request, batched=self._batched, unary=True)
            except Exception as exc:
                log.exception("a request could not be read")
                pending.pop(request_id).fail(f"{type(exc).__name__}: {exc}", ErrorCode.INTERNAL)
        self._has_room.clear()
        try:
            with self._lock:
                connection = self._connected()
                self._pending.update(pending)
                connection.send(Submit(submit))
        except OSError as exc:
            log.warning("no engine at %s: %s", self._path, exc)
            self._fail(pending)
        else:
            self._has_room.wait()

    def finalize(self) -> None:
        self._stopping.set()
        self._poller.join()
        with self._lock:
            if self._connection is not None:
                hang_up(self._connection)
            reader = self._reader
        if reader is not None:
            reader.join()

    def _connected(self) -> Connection:
        """Under the lock. Connects at the first request, and again after the engine's model was
        loaded anew. Raises OSError."""
        if self._connection is None:
            self._connection = Client(str(self._path), family="AF_UNIX")
            self._reader = threading.Thread(
                target=self._read_loop, args=(self._connection,), name="octavo-unary", daemon=True
            )
            self._reader.start()
        return self._connection

    def _read_loop(self, connection: Connection) -> None:
        try:
            while True:
                message: Admitted | Result = connection.recv()
                if isinstance(message, Admitted):
                    self._has_room.set()
                else:
                    with self._lock:
                        pending = self._pending.pop(message.request_id, None)
                    if pending is not None:
                        pending.answer(message)
        except (EOFError, OSError):
            with self._lock:
                connection.close()
                self._connection = None
                left = dict(self._pending)
            self._fail(left)
            self._has_room.set()

    def _fail(self, pending: dict[int, _Pending]) -> None:
        message = f"the engine of model {self._engine_model} is not there: not loaded, or stopped"
        for request_id, each in pending.items():
            each.fail(message, ErrorCode.UNAVAILABLE)
            with self._lock:
                self._pending.pop(request_id, None)

    def _poll_loop(self) -> None:
        told: set[int] = set()
        while not self._stopping.wait(CANCEL_POLL_S):
            with self._lock:
                live = dict(self._pending)
            told &= live.keys()
            for request_id in [i for i, p in live.items() if i not in told and p.has_left()]:
                told.add(request_id)
                with self._lock, suppress(OSError):  # a lost connection has ended them all
                    if self._connection is not None:
                        self._connection.send(Cancel(request_id))
