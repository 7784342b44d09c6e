"""Lets requests into the engine as it has room, and holds their deliverer back while not."""

import logging
import threading
import time

from octavo.config import SLO
from octavo.engine import Engine
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.scheduling.sequence import FinishReason
from octavo.serving.billing import Billing
from octavo.serving.incoming import ErrorCode, IncomingRequest, Sender
from octavo.serving.relay import Arrival
from octavo.serving.reply import Reply
from octavo.serving.request import RequestReader
from octavo.serving.responder import Responder
from octavo.serving.tokenizer import Tokenizer
from octavo.stats import RequestStats

log = logging.getLogger(__name__)

# How soon a request that waits here sees that its client has left.
_TICK_S = 0.05


class Admission:
    """Used by several threads, each with requests of its own."""

    def __init__(
        self,
        engine: Engine,
        responder: Responder,
        reader: RequestReader,
        tokenizer: Tokenizer,
        stats: RequestStats,
        slo: SLO,
        billing: Billing,
    ) -> None:
        self._engine = engine
        self._responder = responder
        self._reader = reader
        self._tokenizer = tokenizer
        self._stats = stats
        self._slo = slo
        self._billing = billing
        self._lock = threading.Lock()  # between seeing room and taking it

    def admit(self, arrivals: list[Arrival]) -> None:
        """Admits the requests, in order, and then waits until the engine has room for another:
        what arrives meanwhile stays in Triton's queue, under its priorities, timeouts and bound.

        Never raises: each request gets its answer, an error if need be.
        """
        arrival_s = time.monotonic()
        # All are read before any waits, so that a bad one is answered at once.
        read = [self._read(*arrival, arrival_s) for arrival in arrivals]
        in_hand = [each for each in read if each is not None]
        while in_hand:  # more than fit: only a batch can be
            if self._try(in_hand[0][0]):
                del in_hand[0]
            elif not self._engine.wait_for_room(_TICK_S):
                in_hand = [each for each in in_hand if not self._ended_in_hand(*each)]
        while not self._engine.wait_for_room(_TICK_S):
            pass

    def _read(
        self, request: IncomingRequest, sender: Sender, arrival_s: float
    ) -> tuple[Reply, float] | None:
        """The reply to fill and the request's own timeout; None if it is answered already."""
        try:
            read = self._reader.read(request)
            reply = Reply(
                read, sender, self._tokenizer, arrival_s, self._stats, self._slo, self._billing
            )
            return reply, request.timeout_s
        except InvalidRequestError as exc:
            self._stats.count_invalid()
            sender.fail(str(exc), ErrorCode.INVALID_ARG)
        except Exception as exc:
            log.exception("a request could not be read")
            sender.fail(f"{type(exc).__name__}: {exc}", ErrorCode.INTERNAL)
        return None

    def _try(self, reply: Reply) -> bool:
        """Hands one request to the engine, if that has room."""
        with self._lock:
            if not self._engine.wait_for_room(0):
                return False
            try:
                self._responder.submit(reply)
            except InvalidRequestError as exc:
                self._stats.count_invalid()
                reply.close_with_error(None, str(exc), ErrorCode.INVALID_ARG)
            except EngineDeadError as exc:
                reply.close_with_error(FinishReason.ERROR, str(exc), ErrorCode.UNAVAILABLE)
            except Exception as exc:
                log.exception("a request could not be admitted")
                reply.fail(f"{type(exc).__name__}: {exc}")
            return True

    def _ended_in_hand(self, reply: Reply, timeout_s: float) -> bool:
        """Answers a request that is cancelled or late. `timeout_s` is the one that Triton
        counts in its own queue and no longer here; 0 is none."""
        if reply.is_cancelled():
            time.sleep(_TICK_S)  # see Reply: not at once
            reply.cancelled()
            return True
        limits = [timeout_s, (reply.request.params.deadline_ms or 0) / 1e3]
        limit_s = min((s for s in limits if s > 0), default=float("inf"))
        if time.monotonic() - reply.arrival_s < limit_s:
            return False
        reply.expired(f"{limit_s:g} s")
        return True
