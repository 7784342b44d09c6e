"""Closed loops: users who send their next request when the last one is answered.

Both kinds ask the same requests in the same order; what differs is when a request is admitted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from octavo.engine import Engine
from octavo.errors import OctavoError
from octavo.generation import GenerationRequest, TokenOutput
from octavo.playbook.samples import RequestTimes
from octavo.playbook.workload import Request
from octavo.sampling_params import parse
from octavo.scheduling.sequence import FinishReason


@dataclass(slots=True)
class Asked:
    """A request, when it was sent and when its tokens came: perf_counter's clock."""

    request: Request
    sent_s: float
    token_times_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    ending: TokenOutput | None = None

    def take(self, output: TokenOutput) -> None:
        if output.token_id is not None:
            self.token_times_s.append(time.perf_counter())
        if output.prompt is not None:
            self.cached_tokens = output.prompt.num_cached_tokens
        if output.finish_reason is not None:
            self.ending = output

    def check(self) -> None:
        """Raises OctavoError: whatever else it ended by, its numbers would be of another load."""
        assert self.ending is not None
        if self.ending.finish_reason is not FinishReason.LENGTH:
            reason = self.ending.finish_reason
            raise OctavoError(f"a request ended by {reason}: {self.ending.error}")

    def times(self, window_end_s: float) -> RequestTimes:
        times = self.token_times_s
        return RequestTimes(
            ttft_s=times[0] - self.sent_s,
            e2e_s=times[-1] - self.sent_s,
            output_tokens=len(times),
            window_tokens=sum(each <= window_end_s for each in times),
            ended_in_window=times[-1] <= window_end_s,
            cached_tokens=self.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Load:
    requests: tuple[RequestTimes, ...]
    window_s: float

    @classmethod
    def of(cls, asked: Sequence[Asked], began_s: float, window_end_s: float) -> Load:
        times = tuple(each.times(window_end_s) for each in asked)
        return cls(times, window_end_s - began_s)


def run_static(
    requests: Sequence[Request],
    users: int,
    count_fitting: Callable[[Sequence[Request]], int],
    run_batch: Callable[[Sequence[Asked]], None],
) -> Load:
    """count_fitting: of those who wait, in their order, how many fit into a batch, at least one.
    run_batch: answers all of a batch."""
    source = iter(requests)
    began_s = time.perf_counter()
    waiting = deque(Asked(each, began_s) for each in islice(source, users))
    answered: list[Asked] = []
    last_batch_s = began_s
    while waiting:
        count = count_fitting([each.request for each in waiting])
        batch = [waiting.popleft() for _ in range(count)]
        last_batch_s = time.perf_counter()
        run_batch(batch)
        answered += batch
        for each in sorted(batch, key=lambda asked: asked.token_times_s[-1]):
            if (following := next(source, None)) is not None:
                waiting.append(Asked(following, each.token_times_s[-1]))
    return Load.of(answered, began_s, last_batch_s)


def run_continuous(engine: Engine, requests: Sequence[Request], users: int) -> Load:
    source = iter(requests)
    began_s = last_sent_s = time.perf_counter()
    answered: list[Asked] = []
    running = [Asked(each, began_s) for each in islice(source, users)]
    for each in running:
        submit(engine, each)
    while running:
        engine.step()
        ended = [each for each in running if each.ending is not None]
        for each in ended:
            each.check()
            running.remove(each)
            answered.append(each)
            if (following := next(source, None)) is not None:
                last_sent_s = time.perf_counter()
                running.append(Asked(following, each.token_times_s[-1]))
                submit(engine, running[-1])
    return Load.of(answered, began_s, last_sent_s)


def submit(engine: Engine, asked: Asked) -> None:
    wanted = {"temperature": 0, "max_tokens": asked.request.output_tokens, "ignore_eos": True}
    engine.submit(GenerationRequest(list(asked.request.prompt), parse(wanted), asked.take))


def run_engine_batch(engine: Engine, batch: Sequence[Asked]) -> None:
    for each in batch:
        submit(engine, each)
    while engine.step():
        pass
    for each in batch:
        each.check()
