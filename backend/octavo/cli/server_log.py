"""The server's log file: where it goes, its tail, and the cause of a failed start in it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from octavo.cli.paths import cache_dir

_KEPT_LOGS = 20
# glog quotes a message and writes its line ends as \n; the traceback of a model follows "At:".
_END = r'(?:\\n|"\s*$|\s*\|\s*$|$)'
_REFUSAL = re.compile(
    rf"(?:TritonModelException: octavo: |\b(?:OctavoError|ConfigError): )(?P<text>.+?){_END}"
)
_CAUSES = (
    re.compile(rf"failed to load '[^']*' version \d+: (?P<text>.+?){_END}"),
    re.compile(rf"(?P<text>failed to start \w+ service: .+?){_END}"),
    re.compile(r"(?P<text>boost::interprocess::\w+.*)"),
    re.compile(r"error: creating server: (?P<text>.+)"),
)
_ROUTINE = re.compile(r"I\d{4} .*(?<!pb_stub)\.cc:\d+\]|[|+]")
# A Python exception while a model loads: the interpreter works, so it comes again.
_EXCEPTION = re.compile(r"Internal: (?:\w+\.)*[A-Z]\w*(?:Error|Exception)\b")


def new_log_file(folder: Path | None = None) -> Path:
    """A path for one more log; the oldest beyond the last few are removed."""
    folder = folder or cache_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("server-*.log"))[: -_KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    now_s = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now_s))
    return folder / f"server-{stamp}-{int(now_s * 1e6) % 10**6:06}.log"


def tail(path: Path, lines: int = 20) -> list[str]:
    """The last lines that may explain an end: no tables, and not what the server does as always."""
    telling = [line for line in _lines(path) if line.strip() and not _ROUTINE.match(line)]
    return telling[-lines:]


def refusal(path: Path) -> str | None:
    """Why the engine refused its settings or checkpoint: a second try would end the same."""
    return _first_match((_REFUSAL,), _lines(path))


def cause(path: Path) -> str | None:
    """The most telling line about a server that did not start."""
    lines = _lines(path)
    return next((text for each in _CAUSES if (text := _first_match((each,), lines))), None)


def will_come_again(cause: str) -> bool:
    """False for what one more start can mend, such as a process that died of a stale lock."""
    return "already in use" in cause or _EXCEPTION.search(cause) is not None


def _first_match(patterns: Iterable[re.Pattern[str]], lines: list[str]) -> str | None:
    for line in lines:
        for pattern in patterns:
            if match := pattern.search(line):
                return match["text"].replace('\\"', '"').strip()
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
