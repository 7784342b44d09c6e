"""One of a request's n sequences on its way to text."""

from dataclasses import dataclass, field
from typing import Any

from octavo.execution.logprobs import TokenLogprobs
from octavo.generation import TokenOutput
from octavo.scheduling.sequence import FinishReason
from octavo.serving.detokenizer import Detokenizer, StopStrings
from octavo.serving.request import InferenceRequest
from octavo.serving.tokenizer import Tokenizer

LogprobsEntry = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Unsent:
    """What has gathered since the last response."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobsEntry] = field(default_factory=list)


class Choice:
    """Takes a sequence's outputs; `unsent` has what is to be sent of them."""

    def __init__(self, request: InferenceRequest, tokenizer: Tokenizer) -> None:
        params = request.params
        self.unsent = Unsent(text=request.prompt_text)
        self.num_tokens = 0
        self.cumulative_logprob = 0.0
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(
            tokenizer, request.prompt_token_ids, skip_special_tokens=params.skip_special_tokens
        )
        self._stops = StopStrings(params.stop, include=params.include_stop_str_in_output)

    def take(self, output: TokenOutput) -> bool:
        """True if a stop string ends the sequence, which the engine does not know of."""
        if self.finish_reason is not None:
            return False  # ended by a stop string, which the engine has run past
        if output.token_id is not None:
            self._take_token(output.token_id, output)
        if self._stops.matched:
            self.finish_reason = FinishReason.STOP
            return output.finish_reason is None
        self.finish_reason = output.finish_reason
        if self.finish_reason is not None:
            self.unsent.text += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        return False

    def _take_token(self, token_id: int, output: TokenOutput) -> None:
        self.num_tokens += 1
        self.unsent.token_ids.append(token_id)
        if output.logprobs is not None:
            self.cumulative_logprob += output.logprobs.logprob
            if self._request.shows_logprobs:
                entry = logprobs_entry(token_id, output.logprobs, self._tokenizer)
                self.unsent.logprobs.append(entry)
        # The token that stopped the sequence is no text unless that was asked for.
        is_stop = output.finish_reason is FinishReason.STOP
        if not is_stop or self._request.params.include_stop_str_in_output:
            self.unsent.text += self._stops.push(self._detokenizer.push(token_id))


def logprobs_entry(token_id: int, own: TokenLogprobs, tokenizer: Tokenizer) -> LogprobsEntry:
    """vllm_backend's: the token itself first, then the most likely ones."""
    top = [(i, value, rank) for rank, (i, value) in enumerate(own.top, start=1) if i != token_id]
    return {
        str(i): {"logprob": value, "rank": rank, "decoded_token": tokenizer.decode_single(i)}
        for i, value, rank in [(token_id, own.logprob, own.rank), *top]
    }
