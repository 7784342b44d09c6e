"""Who waits for tokens: requests whose sequences have not all ended, and what they are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from octavo.execution.logprobs import TokenLogprobs
from octavo.execution.sampler import PromptLogprobs
from octavo.generation import PromptOutput, Sink, TokenOutput
from octavo.scheduling.sequence import FinishReason, Sequence


@dataclass(slots=True)
class _Receiver:
    """A request."""

    sink: Sink
    sequences: dict[int, Sequence]  # by index; those that have not ended
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    has_output: bool = False


class Receivers:
    """By request id, in the order in which they came. The engine's thread has them; whoever stops
    it reads the ids under the engine's lock, under which they are added too."""

    def __init__(self) -> None:
        self._receivers: dict[int, _Receiver] = {}

    def __len__(self) -> int:
        return len(self._receivers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._receivers)

    def add(self, arrived: Iterable[tuple[Sequence, Sink]]) -> None:
        for sequence, sink in arrived:
            own = {each.index: each for each in (sequence, *sequence.forks)}
            self._receivers[sequence.request_id] = _Receiver(sink, own)

    def sequences(self, request_id: int) -> list[Sequence]:
        """Of a request, those that have not ended; none if it has."""
        receiver = self._receivers.get(request_id)
        return list(receiver.sequences.values()) if receiver else []

    def all_sequences(self) -> list[Sequence]:
        return [s for receiver in self._receivers.values() for s in receiver.sequences.values()]

    def ends_with(self, sequence: Sequence) -> bool:
        """Whether its request ends when it does."""
        return self._receivers[sequence.request_id].sequences.keys() == {sequence.index}

    def tell(
        self,
        sequence: Sequence,
        token_id: int | None,
        logprobs: TokenLogprobs | None,
        reason: FinishReason | None,
        error: str | None,
    ) -> None:
        """With a reason it is the sequence's last output, and maybe its request's."""
        receiver = self._receivers[sequence.request_id]
        prompt = None
        if token_id is not None and not receiver.has_output:
            receiver.has_output = True
            wanted = sequence.params.prompt_logprobs is not None
            prompt = PromptOutput(
                sequence.num_cached_tokens,
                receiver.prompt_logprobs if wanted else None,
                sequence.account,
            )
        if reason is not None:
            del receiver.sequences[sequence.index]
            if not receiver.sequences:
                del self._receivers[sequence.request_id]
        receiver.sink(TokenOutput(token_id, logprobs, reason, error, sequence.index, prompt))

    def keep_prompt_logprobs(self, prompt: PromptLogprobs) -> None:
        """They go with the first output. Of a chunk that is computed again they take the place of
        the first ones."""
        receiver = self._receivers.get(prompt.sequence.request_id)
        if receiver is not None:  # or it has ended meanwhile
            receiver.prompt_logprobs[prompt.first - 1 :] = prompt.tokens
