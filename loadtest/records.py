"""The raw data of a run: one JSON line for each request, on disk as soon as it has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "error", "cancelled", "cut_off", "dropped"]


@dataclass(slots=True, kw_only=True)
class Record:
    """One request. Times are nanoseconds since its process started the run."""

    index: int
    workload: str
    status: Status = "cut_off"
    """ok: a whole answer; error: refused, failed or incomplete; cancelled: by the workload, as
    planned; cut_off: by the end of the run; dropped: never sent, too many were in flight."""
    error: str | None = None
    intended_ns: int
    """When the schedule wanted it sent; in a closed loop, when it was sent."""
    sent_ns: int | None = None
    first_text_ns: int | None = None
    output_ns: list[int] = field(default_factory=list)
    """When each output arrived."""
    output_tokens: list[int] = field(default_factory=list)
    """The tokens in each output, as counted by the server."""
    ended_ns: int | None = None
    """When it was over here, by whatever status; after the last output of a whole answer."""
    input_tokens: int | None = None
    cached_tokens: int | None = None
    max_tokens: int
    finish_reason: str | None = None


class Recorder:
    """Appends records to a file of its process. What is written survives the process's death."""

    def __init__(self, folder: Path, worker: int, header: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"requests-{worker}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._write({"type": "run", **header})

    def add(self, record: Record) -> None:
        self._write({"type": "request", **asdict(record)})

    def end(self, facts: Mapping[str, Any]) -> None:
        """The last line; its absence shows that the process was killed."""
        self._write({"type": "end", **facts})
        os.close(self._file)

    def _write(self, line: Mapping[str, Any]) -> None:
        # One call a line and no buffer of ours: nothing is lost, and no line is torn in two.
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class WorkerRecords:
    """What one process wrote."""

    header: dict[str, Any]
    records: list[Record]
    end: dict[str, Any] | None
    """None if the process was killed."""


def read(folder: Path) -> list[WorkerRecords]:
    """All processes' files of a run, by worker. Raises ValueError for a folder without records
    and for a line that cannot be read; a last line that was torn by a kill is left out."""
    paths = sorted(folder.glob("requests-*.jsonl"), key=lambda path: int(path.stem.split("-")[1]))
    if not paths:
        raise ValueError(f"{folder}: holds no requests-*.jsonl")
    return [_read_file(path) for path in paths]


def _read_file(path: Path) -> WorkerRecords:
    header: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    records: list[Record] = []
    for number, line in _whole_lines(path):
        try:
            value = json.loads(line)
            kind = value.pop("type")
            if kind == "run":
                header = value
            elif kind == "end":
                end = value
            else:
                records.append(Record(**{f.name: value[f.name] for f in fields(Record)}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a record ({error!r})") from None
    if header is None:
        raise ValueError(f"{path}: has no header")
    return WorkerRecords(header, records, end)


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line
