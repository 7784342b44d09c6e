"""Traffic for metrics to show: ordinary requests, and some of each kind that ends otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.target import Target, prompt_ids

_WORKERS = 8
# What runs at once is admitted for its prompts, and grows to twice the KV memory of the server.
_PROMPT_TOKENS, _ANSWER_TOKENS = 40, 120


@contextmanager
def under_load(target: Target) -> Iterator[None]:
    """Requests come in until the block ends, more at once than run."""
    stopping = threading.Event()

    def work(seed: int) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            target.send(prompt_ids(_PROMPT_TOKENS, seed), max_tokens=_ANSWER_TOKENS).wait()
            if number % 4 == 1:
                target.send([], max_tokens=1).wait()  # invalid
                leaving = target.send(prompt_ids(8, seed), max_tokens=2 * _ANSWER_TOKENS)
                leaving.wait_for_first()
                leaving.cancel()
                # Its level lets all others pass, so its time runs out in the queue.
                target.send(prompt_ids(8, seed), max_tokens=1, level=3, timeout_s=0.01).wait()

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(_WORKERS)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stopping.set()
        for worker in workers:
            worker.join()
