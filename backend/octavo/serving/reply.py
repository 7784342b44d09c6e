"""One request's way out: tokens in, Triton responses out, the last with the FINAL flag."""

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from octavo.config import SLO
from octavo.engine import TokenOutput
from octavo.scheduling.sequence import FinishReason
from octavo.serving import wire
from octavo.serving.detokenizer import Detokenizer, StopStrings
from octavo.serving.request import InferenceRequest
from octavo.serving.tokenizer import Tokenizer
from octavo.stats import RequestStats

log = logging.getLogger(__name__)


def send_error(sender: Any, message: str, code: int) -> None:
    """The final response of a request that fails. Never raises: a fault on this way out must not
    reach the neighbours."""
    try:
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception:
        log.exception("an error could not be sent: %s", message)


class Reply:
    """Written by one sender thread; `is_cancelled` and `close_with_error` may come from others.

    After the final response Triton's sender must not be touched (asking it `is_cancelled` then
    has crashed servers), so every touch is under the lock and behind `_open`. Nor may a final
    response come within about a millisecond of the cancellation: that crashes the 2.51 server.
    So a reply whose client has left goes silent, and its end is sent by who noticed it, later.
    """

    def __init__(
        self,
        request: InferenceRequest,
        sender: Any,
        tokenizer: Tokenizer,
        arrival_s: float,
        stats: RequestStats,
        slo: SLO,
    ) -> None:
        self.request = request
        self.arrival_s = arrival_s
        # Tells the engine that a stop string has ended the request.
        self.stop_engine: Callable[[], None] = lambda: None
        self._sender = sender
        self._tokenizer = tokenizer
        self._stats = stats
        self._slo = slo
        self._lock = threading.Lock()
        self._open = True
        self._left = False
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids)
        self._stops = StopStrings(request.params.stop)
        self._text = request.prompt_text
        self._token_ids: list[int] = []
        self._logprobs: list[dict[str, Any]] = []
        self._cumulative_logprob = 0.0
        self._num_tokens = 0
        self._first_output_s: float | None = None
        self._last_output_s = arrival_s

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def has_begun(self) -> bool:
        """The first token has come."""
        return self._num_tokens > 0

    @property
    def has_left(self) -> bool:
        """`is_cancelled` has said so; `cancelled` is due."""
        return self._left

    def is_cancelled(self) -> bool:
        """Asks Triton; a round trip between processes. If so the reply goes silent, and the
        caller owes it `cancelled`, some time later. True if the question fails: then there is
        nobody to answer."""
        with self._lock:
            try:
                self._left = self._open and bool(self._sender.is_cancelled())
            except Exception:
                log.exception("a request could not be asked for")
                self._left = True
            return self._left

    def deliver(self, outputs: list[TokenOutput]) -> None:
        """Takes what the engine put out since the last call; sends at most one response."""
        if not self._open or self._left:
            return  # ended by a stop string, which the engine has run past; or nobody listens
        reason: FinishReason | None = None
        for output in outputs:
            reason = output.finish_reason
            if output.token_id is not None:
                self._take_token(output)
            if self._stops.matched:
                if reason is None:
                    self.stop_engine()
                reason = FinishReason.STOP
            if reason is not None:
                break
        if reason is None:
            if self.request.stream and self._text:
                self._respond(None)
        elif reason is FinishReason.DEADLINE:
            self.expired(f"deadline_ms = {self.request.params.deadline_ms}")
        elif reason is FinishReason.ERROR:
            self.fail(output.error or "the engine ended the request")
        else:
            if not self._stops.matched:
                self._text += self._stops.push(self._detokenizer.flush())
                self._text += self._stops.flush()
            self._respond(reason)

    def close_with_error(self, reason: FinishReason | None, message: str, code: int) -> None:
        """The final response, an error. Does nothing if there was one. Without a reason the
        request does not count as finished: it never began."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            send_error(self._sender, message, code)
        if reason is not None:
            self._count_finish(reason, is_error=True)

    def cancelled(self) -> None:
        """Ends the request as its client, who has left, would expect."""
        message = "Request was cancelled"
        self.close_with_error(FinishReason.CANCELLED, message, pb_utils.TritonError.CANCELLED)

    def expired(self, limit: str) -> None:
        """Ends the request in the words of Triton's own queue timeout."""
        message = f"Request timeout expired: {limit}"
        self.close_with_error(FinishReason.DEADLINE, message, pb_utils.TritonError.UNAVAILABLE)

    def fail(self, message: str) -> None:
        """Ends the request by a fault of ours."""
        self.close_with_error(FinishReason.ERROR, message, pb_utils.TritonError.INTERNAL)

    def _take_token(self, output: TokenOutput) -> None:
        assert output.token_id is not None
        self._num_tokens += 1
        self._token_ids.append(output.token_id)
        if output.logprobs is not None:
            self._cumulative_logprob += output.logprobs.logprob
            if self.request.shows_logprobs:
                self._logprobs.append(self._logprobs_entry(output))
        # The token that stopped the sequence is no text, whether it is special or not.
        if output.finish_reason is not FinishReason.STOP:
            self._text += self._stops.push(self._detokenizer.push(output.token_id))

    def _logprobs_entry(self, output: TokenOutput) -> dict[str, Any]:
        assert output.logprobs is not None and output.token_id is not None
        own = (output.token_id, output.logprobs.logprob, output.logprobs.rank)
        top = [(i, value, rank) for rank, (i, value) in enumerate(output.logprobs.top, start=1)]
        return {
            str(token_id): {
                "logprob": value,
                "rank": rank,
                "decoded_token": self._tokenizer.decode_single(token_id),
            }
            for token_id, value, rank in [own, *(entry for entry in top if entry[0] != own[0])]
        }

    def _respond(self, reason: FinishReason | None) -> None:
        """Sends what has gathered; `reason` makes it the final response."""
        self._observe_output()
        tensors = [
            pb_utils.Tensor(name, self._batched(self._value(name, reason)))
            for name in self.request.outputs
        ]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reason else 0
        with self._lock:
            if not self._open or self._left:
                return
            self._open = reason is None
            self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)
        self._text = ""
        self._token_ids, self._logprobs = [], []
        if reason is not None:
            self._count_finish(reason, is_error=False)

    def _value(self, name: str, reason: FinishReason | None) -> NDArray[Any]:
        match name:
            case wire.TEXT_OUTPUT:
                return _bytes(self._text)
            case wire.FINISH_REASON:
                return _bytes(reason.value if reason else "None")  # vllm_backend's "not yet"
            case wire.CUMULATIVE_LOGPROB:
                return np.array([self._cumulative_logprob], dtype=np.float32)
            case wire.LOGPROBS:
                shown = self.request.shows_logprobs
                return _bytes(json.dumps(self._logprobs) if shown else "null")
            case wire.NUM_INPUT_TOKENS:
                return np.array([len(self.request.prompt_token_ids)], dtype=np.uint32)
            case wire.NUM_OUTPUT_TOKENS:
                return np.array([len(self._token_ids)], dtype=np.uint32)
            case wire.TOKEN_IDS:
                return np.array(self._token_ids, dtype=np.int32)
        raise AssertionError(name)

    def _batched(self, value: NDArray[Any]) -> NDArray[Any]:
        return value[None] if self.request.batched else value

    def _observe_output(self) -> None:
        if not self._text:
            return
        now_s = time.monotonic()
        is_first = self._first_output_s is None
        if is_first:
            self._first_output_s = now_s
        self._stats.observe_output(now_s - self._last_output_s, is_first=is_first)
        self._last_output_s = now_s

    def _count_finish(self, reason: FinishReason, *, is_error: bool) -> None:
        now_s = time.monotonic()
        first_s = now_s if self._first_output_s is None else self._first_output_s
        ttft_s, e2e_s = first_s - self.arrival_s, now_s - self.arrival_s
        tpot_s = (e2e_s - ttft_s) / (self._num_tokens - 1) if self._num_tokens > 1 else None
        is_good = (
            not is_error and ttft_s <= self._slo.ttft_s and (tpot_s or 0.0) <= self._slo.tpot_s
        )
        self._stats.observe_finish(reason.value, e2e_s, tpot_s, self._num_tokens, is_good=is_good)


def _bytes(text: str) -> NDArray[Any]:
    return np.array([text.encode()], dtype=object)
