"""A scrape of /metrics, and what has changed between two."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

# A proxy of the environment must not come between us and our own server.
_OPENER = build_opener(ProxyHandler({}))
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Labels = frozenset[tuple[str, str]]


class ScrapeError(Exception):
    """Nobody answered, or not with metrics of ours."""


@dataclass(frozen=True, slots=True)
class Scrape:
    at_s: float  # time.monotonic
    samples: Mapping[tuple[str, Labels], float]

    @classmethod
    def parse(cls, text: str, at_s: float) -> Scrape:
        return cls(
            at_s,
            {
                (name, frozenset(_LABEL.findall(labels))): float(value)
                for name, labels, value in _SAMPLE.findall(text)
            },
        )

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of all samples of that name and these labels; None if there is none."""
        wanted = labels.items()
        found = [v for (n, own), v in self.samples.items() if n == name and wanted <= own]
        return sum(found) if found else None

    def names(self, name: str, label: str) -> set[str]:
        """What a label has been, in all samples of that name."""
        return {dict(own).get(label, "") for n, own in self.samples if n == name}


@dataclass(frozen=True, slots=True)
class Interval:
    """Between two scrapes."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        return self.after.at_s - self.before.at_s

    def gauge(self, name: str, **labels: str) -> float:
        return self.after.value(name, **labels) or 0.0

    def increase(self, name: str, **labels: str) -> float:
        """Of a counter. One that has fallen began anew: its server was restarted."""
        before, after = self.before.value(name, **labels), self.after.value(name, **labels)
        if after is None:
            return 0.0
        return after - before if before is not None and before <= after else after

    def rate(self, name: str, **labels: str) -> float:
        return self.increase(name, **labels) / self.seconds

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """Of a histogram, what each has grown by, in rising order of bounds."""
        bounds = self.after.names(f"{name}_bucket", "le")
        return sorted(
            (
                math.inf if bound == "+Inf" else float(bound),
                self.increase(f"{name}_bucket", le=bound),
            )
            for bound in bounds
        )


def scrape(url: str, timeout_s: float = 5.0) -> Scrape:
    """Raises ScrapeError."""
    try:
        with _OPENER.open(url, timeout=timeout_s) as response:
            text = response.read().decode("utf-8", errors="replace")
    except (OSError, HTTPException, UnicodeError) as exc:  # no name at all, the last
        raise ScrapeError(f"no answer ({getattr(exc, 'reason', None) or exc})") from None
    try:
        found = Scrape.parse(text, time.monotonic())
    except ValueError as exc:
        raise ScrapeError(f"what it answers are no metrics ({exc})") from None
    if found.value("octavo_engine_up") is None:
        raise ScrapeError("it has no octavo metrics: is it the metrics port of an Octavo server?")
    return found
