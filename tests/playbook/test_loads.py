"""Closed loops: who is asked when, in which batch, and what counts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from octavo.playbook.loads import Asked, run_static
from octavo.playbook.workload import Request

REQUESTS = [Request((number,), 1 + number % 3) for number in range(9)]


class Machine:
    """Answers a batch: a millisecond for each step of its longest answer."""

    def __init__(self) -> None:
        self.batches: list[list[Asked]] = []
        self.began_s: list[float] = []

    def run(self, batch: Sequence[Asked]) -> None:
        self.began_s.append(time.perf_counter())
        self.batches.append(list(batch))
        for step in range(max(each.request.output_tokens for each in batch)):
            time.sleep(0.001)
            for each in batch:
                if step < each.request.output_tokens:
                    each.token_times_s.append(time.perf_counter())

    def prompts(self) -> list[list[int]]:
        return [[each.request.prompt[0] for each in batch] for batch in self.batches]


def test_a_batch_is_as_many_as_fit_and_the_rest_waits() -> None:
    machine = Machine()
    load = run_static(REQUESTS, 4, lambda waiting: min(len(waiting), 3), machine.run)
    assert [len(batch) for batch in machine.prompts()] == [3, 3, 3]
    assert machine.prompts()[0] == [0, 1, 2]
    # The fourth user has waited longest; then come those who were answered first.
    assert machine.prompts()[1] == [3, 4, 5]
    assert len(load.requests) == 9


def test_a_users_next_request_is_sent_when_its_last_is_answered() -> None:
    machine = Machine()
    load = run_static(REQUESTS, 3, len, machine.run)
    first, second = machine.batches[:2]
    answered = sorted(each.token_times_s[-1] for each in first)
    assert [each.sent_s for each in second] == answered
    # Whoever is answered first waits for the longest answer of the batch.
    assert answered[0] < answered[-1] <= machine.began_s[1]
    assert load.requests[3].ttft_s > load.requests[5].ttft_s


def test_the_window_ends_with_the_last_batchs_beginning() -> None:
    machine = Machine()
    load = run_static(REQUESTS, 3, len, machine.run)
    assert [each.ended_in_window for each in load.requests] == [True] * 6 + [False] * 3
    assert [each.window_tokens for each in load.requests[6:]] == [0, 0, 0]
    assert sum(each.window_tokens for each in load.requests) == sum(
        each.output_tokens for each in load.requests[:6]
    )
    took_s = machine.began_s[2] - machine.batches[0][0].sent_s
    assert abs(load.window_s - took_s) < 5e-4
