"""Requests that have ended, one JSON object a line, without their text: for `octavo plan`."""

import errno
import json
import logging
import os
import threading
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Full, Queue

from octavo.errors import ConfigError
from octavo.planner.traffic import LoggedRequest

log = logging.getLogger(__name__)

_QUEUE_LINES = 10_000  # that wait for a slow disk; what comes beyond is dropped, and counted


class RequestLog:
    """Written by a thread of its own: who adds a line never waits for a disk. A file that has
    reached `max_bytes` becomes FILE.1, in place of the one before. It is opened for each write,
    so it may be moved away at any time."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Raises ConfigError if the file cannot be written."""
        self.dropped = 0
        self._path = path
        self._max_bytes = max_bytes
        self._is_failing = False
        self._lines: Queue[LoggedRequest | None] = Queue(_QUEUE_LINES)  # None ends the thread
        try:
            path.open("ab").close()
        except OSError as exc:
            raise ConfigError(f"request_log = {str(path)!r}: {exc.strerror or exc}") from None
        self._thread = threading.Thread(target=self._run, name="octavo-request-log", daemon=True)
        self._thread.start()

    def add(self, ended: LoggedRequest) -> None:
        try:
            self._lines.put_nowait(ended)
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Writes what has been added."""
        self._lines.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            lines, is_open = self._gathered()
            try:
                if lines:
                    self._write(lines)
                    self._is_failing = False
            except OSError as exc:
                self.dropped += len(lines)
                if not self._is_failing:  # once, until it works again
                    log.error("request log %s: %s; lines are lost", self._path, exc)
                self._is_failing = True

    def _gathered(self) -> tuple[list[LoggedRequest], bool]:
        """What is there, once there is something; false if it is the last."""
        lines = []
        ended = self._lines.get()
        while ended is not None:
            lines.append(ended)
            try:
                ended = self._lines.get_nowait()
            except Empty:
                return lines, True
        return lines, False

    def _write(self, lines: list[LoggedRequest]) -> None:
        """All of them or none: half a line would spoil the next one."""
        data = "".join(json.dumps(asdict(line)) + "\n" for line in lines).encode()
        with self._path.open("ab", buffering=0) as file:
            begin = file.seek(0, os.SEEK_END)
            written = file.write(data)
            if written < len(data):
                file.truncate(begin)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if begin + written >= self._max_bytes:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
