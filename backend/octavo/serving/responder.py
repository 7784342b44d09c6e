"""Threads between the engine and Triton: senders, and one poller for cancellation.

A send is a round trip between processes of about 85 µs, and so is each question whether a
request was cancelled: neither belongs on the engine's thread.
"""

import itertools
import logging
import threading
from queue import SimpleQueue

from octavo.engine import Engine, GenerationRequest, TokenOutput
from octavo.scheduling.sequence import FinishReason
from octavo.serving.reply import Reply

log = logging.getLogger(__name__)

CANCEL_POLL_S = 0.075

_Outputs = list[tuple[Reply, TokenOutput]]
_Queue = SimpleQueue[_Outputs | None]  # of steps; None ends the thread


class Responder:
    """Each reply belongs to one sender thread, so its responses keep their order. A sender that
    is behind finds several outputs of a reply waiting and sends them as one."""

    def __init__(self, engine: Engine, num_threads: int) -> None:
        self._engine = engine
        self._queues: list[_Queue] = [SimpleQueue() for _ in range(num_threads)]
        self._next_sender = itertools.cycle(range(num_threads))
        # What the engine's thread has put out in this step, for each sender.
        self._gathered: list[_Outputs] = [[] for _ in range(num_threads)]
        engine.after_step = self._pass_on
        self._live: dict[int, Reply] = {}  # by request id
        self._live_lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._send_loop, args=(q,), name=f"octavo-sender-{i}", daemon=True
            )
            for i, q in enumerate(self._queues)
        ]
        self._threads.append(
            threading.Thread(target=self._poll_loop, name="octavo-cancel", daemon=True)
        )
        for thread in self._threads:
            thread.start()

    def submit(self, reply: Reply) -> None:
        """Hands a request to the engine and its outputs to `reply`. Raises as Engine.submit."""
        sender = next(self._next_sender)
        request = GenerationRequest(
            prompt_token_ids=reply.request.prompt_token_ids,
            params=reply.request.params,
            sink=lambda output: self._gathered[sender].append((reply, output)),
            arrival_s=reply.arrival_s,
        )
        reply.stop_engine = lambda: self._engine.cancel(request.request_id, FinishReason.STOP)
        self._engine.submit(request)
        with self._live_lock:
            self._live[request.request_id] = reply

    def stop(self) -> None:
        """Sends what is queued, then ends the threads. The engine must have stopped."""
        self._stopping.set()
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        for reply in self._live.values():
            if reply.has_left:
                reply.cancelled()

    def _pass_on(self) -> None:
        for sender, outputs in enumerate(self._gathered):
            if outputs:
                self._gathered[sender] = []
                self._queues[sender].put(outputs)

    def _send_loop(self, queue: _Queue) -> None:
        while True:
            steps = [queue.get()]
            while not queue.empty():  # this thread alone takes from it
                steps.append(queue.get())
            by_reply: dict[Reply, list[TokenOutput]] = {}
            for reply, output in itertools.chain.from_iterable(filter(None, steps)):
                by_reply.setdefault(reply, []).append(output)
            for reply, outputs in by_reply.items():
                self._deliver(reply, outputs)
            if steps[-1] is None:
                return

    def _deliver(self, reply: Reply, outputs: list[TokenOutput]) -> None:
        try:
            reply.deliver(outputs)
        except Exception as exc:
            # One reply's fault must not end the thread that serves its neighbours.
            log.exception("a reply has failed")
            reply.stop_engine()
            reply.fail(f"{type(exc).__name__}: {exc}")

    def _poll_loop(self) -> None:
        while not self._stopping.wait(CANCEL_POLL_S):
            with self._live_lock:
                self._live = {i: reply for i, reply in self._live.items() if reply.is_open}
                live = list(self._live.items())
            for request_id, reply in live:
                if reply.has_left:
                    reply.cancelled()
                elif reply.is_cancelled():
                    log.info("cancelling request %d: its client has left", request_id)
                    self._engine.cancel(request_id)
