"""How much comes when: a forecast, or the log of requests that a server wrote.

A line of the log is a JSON object for one request: arrival_s (Unix time), tenant, prompt_tokens,
cached_tokens, output_tokens, finish_reason, ttft_s (null without a token), e2e_s. It has no text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from octavo.config import SLO
from octavo.errors import ConfigError
from octavo.planner.capacity import Request
from octavo.planner.checks import number
from octavo.planner.cost import HOUR_S, MONTH_HOURS

DAY_HOURS = 24
_ANSWERED = ("stop", "length")
# What a field may be at most: a time in milliseconds is no Unix time of ours.
_MOST = {
    "arrival_s": 1e11, "prompt_tokens": 1e9, "cached_tokens": 1e9, "output_tokens": 1e9,
    "e2e_s": 1e9,
}  # fmt: skip
MOST_DAYS = 400


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A line of the log. arrival_s is Unix time; ttft_s is None if no text came."""

    arrival_s: float
    tenant: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    ttft_s: float | None
    e2e_s: float

    @property
    def is_answered(self) -> bool:
        return self.finish_reason in _ANSWERED

    def meets(self, slo: SLO) -> bool:
        if not self.is_answered or self.ttft_s is None or self.ttft_s > slo.ttft_s:
            return False
        steps = self.output_tokens - 1
        return steps < 1 or (self.e2e_s - self.ttft_s) / steps <= slo.tpot_s


@dataclass(frozen=True, slots=True)
class Volume:
    """answered_tokens: output tokens of requests that ended well; those a plan makes good"""

    requests: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    output_tokens: float = 0.0
    answered_tokens: float = 0.0

    def __add__(self, other: Volume) -> Volume:
        return Volume(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Volume)))

    def times(self, factor: float) -> Volume:
        return Volume(*(getattr(self, f.name) * factor for f in fields(Volume)))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What arrives in each stretch of `bucket_hours`, one after the other."""

    bucket_hours: float
    buckets: tuple[Volume, ...]

    @property
    def hours(self) -> float:
        return self.bucket_hours * len(self.buckets)

    @property
    def total(self) -> Volume:
        return sum(self.buckets, Volume())

    def times(self, factor: float) -> Traffic:
        return Traffic(self.bucket_hours, tuple(each.times(factor) for each in self.buckets))

    def months(self) -> list[Traffic]:
        """Cut into months; a rest of less than one is left out if there is a whole one."""
        length = round(MONTH_HOURS / self.bucket_hours)
        cut = [
            Traffic(self.bucket_hours, self.buckets[first : first + length])
            for first in range(0, len(self.buckets) - length + 1, length)
        ]
        return cut or [self]

    def dearest_day(self) -> Traffic:
        """The 24 hours with the most output tokens; all of it if there are fewer."""
        length = max(1, round(DAY_HOURS / self.bucket_hours))
        if len(self.buckets) <= length:
            return self
        outputs = [each.output_tokens for each in self.buckets]
        first = max(range(len(outputs) - length + 1), key=lambda at: sum(outputs[at : at + length]))
        return Traffic(self.bucket_hours, self.buckets[first : first + length])


def read_log(path: Path) -> list[LoggedRequest]:
    """In the order of arrival. Raises ConfigError naming line, field and value, or that nothing is
    in it that ended well."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"traffic log {path}: {exc}") from None
    found = [
        (_logged(line, f"traffic log {path}, line {index}"), index)
        for index, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise ConfigError(f"traffic log {path}: it holds no request; let the server write some")
    found.sort(key=lambda each: each[0].arrival_s)
    _check_span(path, found)
    requests = [each for each, _ in found]
    if not any(each.is_answered and each.output_tokens for each in requests):
        raise ConfigError(
            f"traffic log {path}: none of its {len(requests)} requests ended well (finish_reason "
            f"{' or '.join(_ANSWERED)}) with a token; dollars are compared per good token"
        )
    return requests


def _check_span(path: Path, found: Sequence[tuple[LoggedRequest, int]]) -> None:
    """found: with the numbers of their lines, in the order of arrival"""
    middle_s, most_s = found[len(found) // 2][0].arrival_s, MOST_DAYS * DAY_HOURS * HOUR_S
    end, end_line = max(found, key=lambda each: each[0].arrival_s + each[0].e2e_s)
    first, first_line = found[0]
    end_s = end.arrival_s + end.e2e_s
    if end_s - first.arrival_s <= most_s:
        return
    # The one that is farther from the others is the odd one.
    line, field, value = end_line, "arrival_s", end.arrival_s
    if end.arrival_s - first.arrival_s <= most_s:
        field, value = "e2e_s", end.e2e_s
    elif middle_s - first.arrival_s > end_s - middle_s:
        line, value = first_line, first.arrival_s
    raise ConfigError(
        f"traffic log {path}, line {line}: {field} = {value!r}: with it the log spans "
        f"{(end_s - first.arrival_s) / (DAY_HOURS * HOUR_S):,.0f} days, at most {MOST_DAYS} are "
        "expected"
    )


def _logged(line: str, where: str) -> LoggedRequest:
    try:
        values: Any = json.loads(line)
    except ValueError as exc:
        raise ConfigError(f"{where}: no JSON ({exc})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a JSON object is expected")
    for name in (f.name for f in fields(LoggedRequest)):
        if name not in values:
            raise ConfigError(f"{where}: {name} is missing")
    for name in ("tenant", "finish_reason"):
        if not isinstance(values[name], str):
            raise ConfigError(f"{where}: {name} = {values[name]!r}: text is expected")
    numbers = {
        name: number(f"{where}: {name}", values[name], most=most) for name, most in _MOST.items()
    }
    ttft = values["ttft_s"]
    cached = number(f"{where}: cached_tokens", values["cached_tokens"],
                    most=numbers["prompt_tokens"])  # fmt: skip
    return LoggedRequest(
        arrival_s=numbers["arrival_s"],
        tenant=values["tenant"],
        prompt_tokens=int(numbers["prompt_tokens"]),
        cached_tokens=int(cached),
        output_tokens=int(numbers["output_tokens"]),
        finish_reason=values["finish_reason"],
        ttft_s=None if ttft is None else number(f"{where}: ttft_s", ttft),
        e2e_s=numbers["e2e_s"],
    )


def recorded(requests: Sequence[LoggedRequest]) -> Traffic:
    """In hours where there is a day of it, else in pieces of five minutes, or in twelve pieces; a
    little shorter ones, so that the last one ends when the last request did."""
    assert requests
    first_s = requests[0].arrival_s
    span_s = max(max(each.arrival_s + each.e2e_s for each in requests) - first_s, 1.0)
    bucket_s = (
        HOUR_S if span_s >= DAY_HOURS * HOUR_S else 300.0 if span_s >= HOUR_S else span_s / 12
    )
    # The end of the last one is no beginning of a further one.
    count = max(1, math.ceil(span_s / bucket_s - 1e-9))
    bucket_s = span_s / count
    volumes: list[list[LoggedRequest]] = [[] for _ in range(count)]
    for each in requests:
        volumes[min(int((each.arrival_s - first_s) / bucket_s), count - 1)].append(each)
    return Traffic(bucket_s / HOUR_S, tuple(_volume(part) for part in volumes))


def _volume(requests: Iterable[LoggedRequest]) -> Volume:
    requests = list(requests)
    return Volume(
        requests=len(requests),
        prompt_tokens=sum(each.prompt_tokens for each in requests),
        cached_tokens=sum(each.cached_tokens for each in requests),
        output_tokens=sum(each.output_tokens for each in requests),
        answered_tokens=sum(each.output_tokens for each in requests if each.is_answered),
    )


def mean_request(total: Volume) -> Request:
    """What a log's requests are like, in whole tokens."""
    count = total.requests
    prompt = max(1, round(total.prompt_tokens / count))
    return Request(
        prompt_tokens=prompt,
        output_tokens=max(1, round(total.output_tokens / count)),
        shared_tokens=min(prompt, round(total.cached_tokens / count)),
    )


def forecast(
    request: Request,
    requests_per_s: float,
    *,
    cached_tokens: int = 0,
    peak_ratio: float = 1.0,
    weekend_ratio: float = 1.0,
    monthly_growth_ratio: float = 0.0,
    months: int = 1,
) -> Traffic:
    """Hours of `months` months of 730.

    requests_per_s: mean of a weekday in the first month
    peak_ratio: a weekday's busiest hour over its mean, up to 2; the day is a cosine
    weekend_ratio: of a weekday's, on two days of seven
    monthly_growth_ratio: of each month over the one before it
    """
    hours = []
    for hour in range(round(months * MONTH_HOURS)):
        day = 1 + (peak_ratio - 1) * math.cos(2 * math.pi * (hour % DAY_HOURS - 14) / DAY_HOURS)
        week = weekend_ratio if hour // DAY_HOURS % 7 >= 5 else 1.0
        growth = (1 + monthly_growth_ratio) ** int(hour // MONTH_HOURS)
        count = requests_per_s * HOUR_S * day * week * growth
        hours.append(
            Volume(
                count,
                count * request.prompt_tokens,
                count * cached_tokens,
                count * request.output_tokens,
                count * request.output_tokens,
            )
        )
    return Traffic(1.0, tuple(hours))
