"""Requests that have ended, one JSON object a line, without their text: for `octavo plan`."""

import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TextIO

from octavo.errors import ConfigError

log = logging.getLogger(__name__)

_QUEUE_LINES = 10_000  # that wait for a slow disk; what comes beyond is dropped, and counted


@dataclass(frozen=True, slots=True)
class Ended:
    """A line. arrival_s is Unix time; ttft_s is null if no text came."""

    arrival_s: float
    tenant: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    ttft_s: float | None
    e2e_s: float


class RequestLog:
    """Written by a thread of its own: who adds a line never waits for a disk. A file that has
    reached `max_bytes` becomes FILE.1, in place of the one before, so that at most twice that is
    ever there."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Raises ConfigError if the file cannot be written."""
        self.dropped = 0
        self._path = path
        self._max_bytes = max_bytes
        self._lines: Queue[Ended | None] = Queue(_QUEUE_LINES)  # None ends the thread
        try:
            self._file = self._open()
        except OSError as exc:
            raise ConfigError(f"request_log = {str(path)!r}: {exc.strerror or exc}") from None
        self._thread = threading.Thread(target=self._run, name="octavo-request-log", daemon=True)
        self._thread.start()

    def add(self, ended: Ended) -> None:
        try:
            self._lines.put_nowait(ended)
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Writes what has been added."""
        self._lines.put(None)
        self._thread.join()

    def _open(self) -> TextIO:
        return self._path.open("a", encoding="utf-8")

    def _run(self) -> None:
        is_open = True
        while is_open:
            lines, is_open = self._gathered()
            try:
                self._write(lines)
            except OSError as exc:
                self.dropped += len(lines)
                log.error("request log %s: %s; %d lines are lost", self._path, exc, len(lines))
        self._file.close()

    def _gathered(self) -> tuple[list[Ended], bool]:
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

    def _write(self, lines: list[Ended]) -> None:
        for line in lines:
            self._file.write(json.dumps(asdict(line)) + "\n")
        self._file.flush()
        if self._file.tell() >= self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._open()
