"""What has been measured already: a line of JSON for each, kept as it comes.

A line speaks for the inputs that its key is a hash of. So a run that was interrupted goes on, and
one with other inputs measures anew, in the same folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

FILE_NAME = "measured.jsonl"


def key_of(kind: str, inputs: Mapping[str, Any]) -> str:
    text = json.dumps([kind, inputs], sort_keys=True, ensure_ascii=True)
    return f"{kind}-{sha256(text.encode()).hexdigest()[:24]}"


class Store:
    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._path = folder / FILE_NAME
        self._found: dict[str, Any] = {}
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a crash

    def get(self, key: str) -> Any | None:
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """On disk when it returns. Raises OSError."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False).encode()
        with self._path.open("ab") as file:
            # What a crash has left of a line must not take this one along.
            file.write(b"\n" + line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[key] = value
