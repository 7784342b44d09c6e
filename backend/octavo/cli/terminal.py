"""The terminal's foreground process group."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def foreground_group() -> Iterator[None]:
    """Takes the terminal's Ctrl-C for this process alone when `make` started it.

    Else make would get it as well, and end with an error after a clean drain.
    """
    group = os.getpgrp()
    if "MAKELEVEL" not in os.environ or group == os.getpid() or not _is_foreground(group):
        yield
        return
    terminal = sys.stdin.fileno()
    # Without this, changing the foreground group from the background would stop us.
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        with suppress(OSError):  # make is gone
            os.tcsetpgrp(terminal, group)
            os.setpgid(0, group)
        signal.signal(signal.SIGTTOU, before)


def _is_foreground(group: int) -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == group
    except (OSError, ValueError):  # no terminal, or stdin is closed
        return False
