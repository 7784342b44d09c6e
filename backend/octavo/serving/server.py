"""The Triton model: requests in, back-pressure, shutdown."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from octavo.config import load_config
from octavo.engine import Engine
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.scheduling.sequence import FinishReason
from octavo.serving.metrics import MetricsExporter
from octavo.serving.reply import Reply, send_error
from octavo.serving.request import RequestReader
from octavo.serving.responder import Responder
from octavo.serving.tokenizer import Tokenizer
from octavo.stats import RequestStats

log = logging.getLogger(__name__)

# How soon a request that waits in execute() sees that its client has left.
_TICK_S = 0.05


class OctavoModel:
    """What Triton's Python backend calls: initialize, execute, finalize."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the engine. Its errors reach the server's log as `octavo: …`."""
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="octavo %(levelname)s %(message)s"
        )
        try:
            self._initialize(args)
        except OctavoError as exc:
            raise pb_utils.TritonModelException(f"octavo: {exc}") from None

    def _initialize(self, args: dict[str, str]) -> None:
        model_config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        config = load_config(version / "engine.toml")
        self._slo = config.slo
        self._tokenizer = Tokenizer(config.model)
        self._engine = Engine(config)
        self._reader = RequestReader(
            self._tokenizer, self._engine.max_model_len, batched=model_config["max_batch_size"] > 0
        )
        self._stats = RequestStats()
        self._responder = Responder(self._engine, config.sender_threads, config.sender_duty_cycle)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = MetricsExporter(self._engine, self._stats, labels)
        self._engine.start()
        log.info(
            "serving; %d sequences run, %d more are admitted, the rest wait in the server's queue",
            config.max_num_seqs, config.max_num_waiting,
        )  # fmt: skip

    def execute(self, requests: list[Any]) -> None:
        """Admits the requests and then holds Triton's thread while the engine is full: what
        arrives meanwhile stays in Triton's queue, under its priorities, timeouts and bound.

        Never raises: each request gets its answer, an error if need be.
        """
        arrival_s = time.monotonic()
        # All are read before any waits, so that a bad one is answered at once.
        read = [self._read(request, arrival_s) for request in requests]
        in_hand = [each for each in read if each is not None]
        while in_hand:  # more than fit: only a batch can be
            if self._engine.wait_for_room(_TICK_S):
                self._admit(in_hand.pop(0)[0])
            else:
                in_hand = [each for each in in_hand if not self._ended_in_hand(*each)]
        while not self._engine.wait_for_room(_TICK_S):
            pass

    def finalize(self) -> None:
        """Lets what runs end, within the drain's bound."""
        self._engine.stop()
        self._responder.stop()
        self._metrics.stop()

    def _read(self, request: Any, arrival_s: float) -> tuple[Reply, float] | None:
        """The reply to fill and the request's own timeout; None if it is answered already."""
        sender = request.get_response_sender()
        try:
            read = self._reader.read(request)
            reply = Reply(read, sender, self._tokenizer, arrival_s, self._stats, self._slo)
            return reply, request.timeout() / 1e6
        except InvalidRequestError as exc:
            self._stats.count_invalid()
            send_error(sender, str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:
            log.exception("a request could not be read")
            send_error(sender, f"{type(exc).__name__}: {exc}", pb_utils.TritonError.INTERNAL)
        return None

    def _admit(self, reply: Reply) -> None:
        """Hands one request to the engine, which has room."""
        try:
            self._responder.submit(reply)
        except InvalidRequestError as exc:
            self._stats.count_invalid()
            reply.close_with_error(None, str(exc), pb_utils.TritonError.INVALID_ARG)
        except EngineDeadError as exc:
            reply.close_with_error(FinishReason.ERROR, str(exc), pb_utils.TritonError.UNAVAILABLE)
        except Exception as exc:
            log.exception("a request could not be admitted")
            reply.fail(f"{type(exc).__name__}: {exc}")

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
