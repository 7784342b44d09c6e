"""One request's way out: tokens in, responses out, the last one final."""

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.config import SLO
from octavo.generation import PromptOutput, TokenOutput
from octavo.planner.traffic import LoggedRequest
from octavo.scheduling.sequence import FinishReason
from octavo.serving import wire
from octavo.serving.billing import Billing
from octavo.serving.choice import Choice, Unsent, logprobs_entry
from octavo.serving.incoming import ErrorCode, Sender
from octavo.serving.request import InferenceRequest
from octavo.serving.tokenizer import Tokenizer
from octavo.stats import RequestStats, SLOName

log = logging.getLogger(__name__)


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
        sender: Sender,
        tokenizer: Tokenizer,
        arrival_s: float,
        stats: RequestStats,
        slo: SLO,
        billing: Billing,
    ) -> None:
        self.request = request
        self.arrival_s = arrival_s
        # Tells the engine that a stop string has ended a sequence, or all of them (None).
        self.stop_engine: Callable[[int | None], None] = lambda index: None
        self._sender = sender
        self._tokenizer = tokenizer
        self._stats = stats
        self._slo = slo
        self._billing = billing
        self._lock = threading.Lock()
        self._open = True
        self._left = False
        self._choices = [Choice(request, tokenizer) for _ in range(request.params.n)]
        self._prompt: PromptOutput | None = None
        self._first_output_s: float | None = None
        self._last_output_s = arrival_s
        self._num_responses = 0

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def has_begun(self) -> bool:
        """The first token has come."""
        return self._prompt is not None

    @property
    def has_left(self) -> bool:
        """`is_cancelled` has said so; `cancelled` is due."""
        return self._left

    def is_cancelled(self) -> bool:
        """Asks the sender. If so the reply goes silent, and the caller owes it `cancelled`, some
        time later. True if the question fails: then there is nobody to answer."""
        with self._lock:
            try:
                self._left = self._open and self._sender.is_cancelled()
            except Exception:
                log.exception("a request could not be asked for")
                self._left = True
            return self._left

    def deliver(self, outputs: list[TokenOutput]) -> None:
        """Takes what the engine put out since the last call; sends at most one response."""
        if not self._open or self._left:
            return  # it has ended, or nobody listens
        for output in outputs:
            self._prompt = self._prompt or output.prompt
            if output.finish_reason is FinishReason.DEADLINE:
                return self.expired(f"deadline_ms = {self.request.params.deadline_ms}")
            if output.finish_reason is FinishReason.ERROR:
                self.stop_engine(None)
                return self.fail(output.error or "the engine ended the request")
            if self._choices[output.index].take(output):
                self.stop_engine(output.index)
        is_final = all(choice.finish_reason for choice in self._choices)
        has_text = any(choice.unsent.text for choice in self._choices)
        if is_final or (self.request.stream and has_text):
            self._respond(is_final=is_final)

    def close_with_error(self, reason: FinishReason | None, message: str, code: ErrorCode) -> None:
        """The final response, an error. Does nothing if there was one. Without a reason the
        request does not count as finished: it never began."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._sender.fail(message, code)
        if reason is not None:
            self._count_finish(reason, is_error=True)

    def cancelled(self) -> None:
        """Ends the request as its client, who has left, would expect."""
        message = "Request was cancelled"
        self.close_with_error(FinishReason.CANCELLED, message, ErrorCode.CANCELLED)

    def expired(self, limit: str) -> None:
        """Ends the request in the words of Triton's own queue timeout."""
        message = f"Request timeout expired: {limit}"
        self.close_with_error(FinishReason.DEADLINE, message, ErrorCode.UNAVAILABLE)

    def fail(self, message: str) -> None:
        """Ends the request by a fault of ours."""
        self.close_with_error(FinishReason.ERROR, message, ErrorCode.INTERNAL)

    def _respond(self, *, is_final: bool) -> None:
        """Sends what has gathered."""
        self._observe_output()
        outputs = {name: self._batched(self._value(name)) for name in self.request.outputs}
        with self._lock:
            if not self._open or self._left:
                return
            self._open = not is_final
            self._sender.send(outputs, is_final=is_final)
        self._num_responses += 1
        for choice in self._choices:
            choice.unsent = Unsent()
        if is_final:
            reasons = [choice.finish_reason for choice in self._choices]
            # One request, one count: cut off by its length if any of its sequences was.
            is_cut = FinishReason.LENGTH in reasons
            reason = FinishReason.LENGTH if is_cut else reasons[0]
            assert reason is not None
            self._count_finish(reason, is_error=False)

    def _value(self, name: str) -> NDArray[Any]:
        """What the response has of an output: an element for each of the n sequences, but for
        those that the prompt has once, and `token_ids`, which come one sequence after another."""
        choices = self._choices
        match name:
            case wire.TEXT_OUTPUT:
                return _bytes([choice.unsent.text for choice in choices])
            case wire.FINISH_REASON:  # vllm_backend's "not yet" is the text None
                return _bytes(
                    [c.finish_reason.value if c.finish_reason else "None" for c in choices]
                )
            case wire.CUMULATIVE_LOGPROB:
                return np.array([c.cumulative_logprob for c in choices], dtype=np.float32)
            case wire.LOGPROBS:
                shown = self.request.shows_logprobs
                return _bytes([json.dumps(c.unsent.logprobs if shown else None) for c in choices])
            case wire.NUM_INPUT_TOKENS:
                return np.array([len(self.request.prompt_token_ids)], dtype=np.uint32)
            case wire.NUM_OUTPUT_TOKENS:
                return np.array([len(c.unsent.token_ids) for c in choices], dtype=np.uint32)
            case wire.TOKEN_IDS:
                return np.array([i for c in choices for i in c.unsent.token_ids], dtype=np.int32)
            case wire.PROMPT_LOGPROBS:
                return _bytes([json.dumps(self._prompt_logprobs())])
            case wire.CACHED_TOKENS:
                cached = self._prompt.num_cached_tokens if self._prompt else 0
                return np.array([cached], dtype=np.uint32)
            case wire.COST:
                return _bytes([json.dumps(self._receipt())])
        raise AssertionError(name)

    def _prompt_logprobs(self) -> list[Any] | None:
        """An entry for each prompt token, the first null; with the first response only."""
        logprobs = self._prompt.logprobs if self._prompt else None
        if logprobs is None or self._num_responses > 0:
            return None
        tokens = zip(self.request.prompt_token_ids[1:], logprobs, strict=True)
        return [None, *(logprobs_entry(i, own, self._tokenizer) for i, own in tokens)]

    def _receipt(self) -> dict[str, Any] | None:
        """With the last response only: until then it grows."""
        if self._prompt is None or not all(choice.finish_reason for choice in self._choices):
            return None
        return self._billing.receipt(self._prompt.account)

    def _batched(self, value: NDArray[Any]) -> NDArray[Any]:
        return value[None] if self.request.batched else value

    def _observe_output(self) -> None:
        if not any(choice.unsent.text for choice in self._choices):
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
        # Its n sequences decode side by side: the longest sets the pace.
        num_tokens = [choice.num_tokens for choice in self._choices]
        longest = max(num_tokens)
        tpot_s = (e2e_s - ttft_s) / (longest - 1) if longest > 1 else None
        met: dict[SLOName, bool] = {"ttft": ttft_s <= self._slo.ttft_s}
        if tpot_s is not None:
            met["tpot"] = tpot_s <= self._slo.tpot_s
        self._stats.observe_finish(
            reason.value, self.request.params.tenant or "", len(self.request.prompt_token_ids),
            sum(num_tokens), e2e_s, tpot_s, None if is_error else met,
        )  # fmt: skip
        self._billing.log_request(
            LoggedRequest(
                arrival_s=time.time() - e2e_s,
                tenant=self.request.params.tenant or "",
                prompt_tokens=len(self.request.prompt_token_ids),
                cached_tokens=self._prompt.num_cached_tokens if self._prompt else 0,
                output_tokens=sum(num_tokens),
                finish_reason=reason.value,
                ttft_s=None if self._first_output_s is None else ttft_s,
                e2e_s=e2e_s,
            )
        )


def _bytes(texts: list[str]) -> NDArray[Any]:
    return np.array([text.encode() for text in texts], dtype=object)
