"""Threads between the engine and Triton: senders, and one poller for cancellation.

A send is a round trip between processes of about 85 µs, and so is each question whether a
request was cancelled: neither belongs on the engine's thread.
"""

import itertools
import logging
import threading
import time
from queue import SimpleQueue

from octavo.engine import Engine
from octavo.generation import GenerationRequest, TokenOutput
from octavo.scheduling.sequence import FinishReason
from octavo.serving.reply import Reply
from octavo.spans import span

log = logging.getLogger(__name__)

CANCEL_POLL_S = 0.075

_Outputs = list[tuple[Reply, TokenOutput]]


class _Sender:
    """One thread that sends what `gathered` holds at each `pass_on`.

    It takes cores and the interpreter's lock from the engine, so after each delivery to several
    streams it rests, to send for no more than `duty_cycle` of the time; tokens of a stream that
    gather meanwhile go out as one response. First and last outputs cut the rest short.
    """

    def __init__(self, name: str, duty_cycle: float) -> None:
        self.gathered: _Outputs = []  # what the engine's thread has put out in this step
        self._rest_ratio = 1 / duty_cycle - 1
        self._steps: SimpleQueue[_Outputs | None] = SimpleQueue()  # None ends the thread
        self._urgent = threading.Event()
        self._lock = threading.Lock()  # an urgent step and its flag come and go together
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def pass_on(self) -> None:
        outputs, self.gathered = self.gathered, []
        if outputs:
            is_urgent = any(o.finish_reason or not reply.has_begun for reply, o in outputs)
            self._put(outputs, is_urgent=is_urgent)

    def stop(self) -> None:
        """Sends what is passed on, then ends the thread."""
        self._put(None, is_urgent=True)
        self._thread.join()

    def _put(self, step: _Outputs | None, *, is_urgent: bool) -> None:
        with self._lock:
            self._steps.put(step)
            if is_urgent:
                self._urgent.set()

    def _loop(self) -> None:
        while True:
            steps = [self._steps.get()]
            began_s = time.perf_counter()
            with self._lock:
                self._urgent.clear()
                while not self._steps.empty():  # this thread alone takes from it
                    steps.append(self._steps.get())
            by_reply: dict[Reply, list[TokenOutput]] = {}
            for reply, output in itertools.chain.from_iterable(filter(None, steps)):
                by_reply.setdefault(reply, []).append(output)
            with span("send"):
                for reply, outputs in by_reply.items():
                    _deliver(reply, outputs)
            if steps[-1] is None:
                return
            if len(by_reply) > 1:  # a lone stream costs little, and somebody may be reading it
                self._urgent.wait((time.perf_counter() - began_s) * self._rest_ratio)


def _deliver(reply: Reply, outputs: list[TokenOutput]) -> None:
    try:
        reply.deliver(outputs)
    except Exception as exc:
        # One reply's fault must not end the thread that serves its neighbours.
        log.exception("a reply has failed")
        reply.stop_engine(None)
        reply.fail(f"{type(exc).__name__}: {exc}")


class Responder:
    """Each reply belongs to one sender, so its responses keep their order."""

    def __init__(self, engine: Engine, num_senders: int, duty_cycle: float) -> None:
        self._engine = engine
        self._senders = [_Sender(f"octavo-sender-{i}", duty_cycle) for i in range(num_senders)]
        self._next_sender = itertools.cycle(self._senders)
        engine.after_step = self._pass_on
        self._live: dict[int, Reply] = {}  # by request id
        self._live_lock = threading.Lock()
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll_loop, name="octavo-cancel", daemon=True)
        self._poller.start()

    def submit(self, reply: Reply) -> None:
        """Hands a request to the engine and its outputs to `reply`. Raises as Engine.submit."""
        sender = next(self._next_sender)
        request = GenerationRequest(
            prompt_token_ids=reply.request.prompt_token_ids,
            params=reply.request.params,
            sink=lambda output: sender.gathered.append((reply, output)),
            bad_words=reply.request.bad_words,
            arrival_s=reply.arrival_s,
        )
        reply.stop_engine = lambda index: self._engine.cancel(
            request.request_id, FinishReason.STOP, index
        )
        self._engine.submit(request)
        with self._live_lock:
            self._live[request.request_id] = reply

    def stop(self) -> None:
        """Sends what is queued, then ends the threads. The engine must have stopped."""
        self._stopping.set()
        for sender in self._senders:
            sender.stop()
        self._poller.join()
        for reply in self._live.values():
            if reply.has_left:
                reply.cancelled()

    def _pass_on(self) -> None:
        for sender in self._senders:
            sender.pass_on()

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
