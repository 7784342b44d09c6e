"""The side of a measuring process: options as a line of stdin, events as lines of stdout.

The process ends when stdin does, so that it never outlives who asked. An event is an object with
one name; `error` is one that the caller of the command can mend.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from octavo.errors import OctavoError


def serve(measure: Callable[[dict[str, Any]], Iterable[Mapping[str, object]]]) -> None:
    """Tells the events that `measure` gives for the options."""
    line = sys.stdin.readline()
    if not line:  # who asked is gone already
        return
    options: dict[str, Any] = json.loads(line)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        for event in measure(options):
            print(json.dumps(event), flush=True)
    except OctavoError as error:
        print(json.dumps({"error": str(error)}), flush=True)


def _end_with_stdin() -> None:
    # Not by sys.stdin: a thread that waits in it holds its lock when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(0)
