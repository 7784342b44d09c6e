"""`octavo top`: a running server, seen through its /metrics."""

from __future__ import annotations

import sys
import time
from urllib.parse import urlsplit

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from octavo.cli.scrape import Interval, Scrape, ScrapeError, scrape
from octavo.cli.top_frame import frame

EXIT_DONE, EXIT_NOT_THERE, EXIT_USAGE = 0, 1, 2


def run(url: str, interval_s: float, *, once: bool) -> int:
    """The exit code. Without a terminal each frame is printed below the one before."""
    address = metrics_address(url)
    if address is None:
        print(
            f"octavo: --url = {url}: http://host:port of the metrics is expected, such as "
            "http://localhost:8002",
            file=sys.stderr,
        )
        return EXIT_USAGE
    console = Console(highlight=False)
    try:
        before = scrape(address)
        if once or not console.is_terminal:
            return _print(console, address, before, interval_s, once=once)
        _watch(console, address, before, interval_s)
    except ScrapeError as exc:
        print(f"octavo: {address}: {exc}", file=sys.stderr)
        return EXIT_NOT_THERE
    except KeyboardInterrupt:
        pass
    return EXIT_DONE


def metrics_address(url: str) -> str | None:
    """With the path that Triton has it at, if there is none. None if it is no address."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_valid = is_valid and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not close, or the port
        return None
    if not is_valid:
        return None
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"


def _print(console: Console, address: str, before: Scrape, interval_s: float, *, once: bool) -> int:
    while True:
        time.sleep(interval_s)
        after = scrape(address)
        console.print(frame(Interval(before, after), address))
        if once:
            return EXIT_DONE
        before = after


def _watch(console: Console, address: str, before: Scrape, interval_s: float) -> None:
    """Until Ctrl-C. A server that is away for a while is waited for."""
    waiting = Text(f"{address}: the first numbers come in {interval_s:g} s; Ctrl-C ends")
    shown: RenderableType = waiting
    with Live(shown, console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(shown, refresh=True)
            time.sleep(interval_s)
            try:
                after = scrape(address)
            except ScrapeError as exc:
                shown = Text(f"{address}: {exc}; still trying, Ctrl-C ends", style="bold red")
                continue
            interval = Interval(before, after)  # with an outage, if there was one
            shown = frame(interval, f"{address}, last {interval.seconds:.1f} s")
            before = after
