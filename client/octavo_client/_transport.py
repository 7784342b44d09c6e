"""The seam between the client and the network: what a transport takes, gives and promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ._types import Cost, Health, PromptLogprobs, SamplingParameters, TokenLogprobs

DEADLINE_GRACE_S = 0.25
"""How much longer than the server the client waits, so that the server's own answer to an
expired deadline arrives before the client hangs up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One generation, independent of the protocol. Exactly one of the three inputs is set."""

    model: str
    model_version: str = ""
    text: str | None = None
    messages: tuple[Mapping[str, object], ...] | None = None
    input_ids: tuple[int, ...] | None = None
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stream: bool = True
    return_token_ids: bool = False
    return_cost: bool = False
    request_id: str = ""

    def sampling_json(self, timeout: float | None) -> dict[str, object]:
        """The sampling parameters to send, with the deadline that `timeout` seconds imply."""
        wire = self.sampling.to_wire()
        if timeout is not None:
            wire.setdefault("deadline_ms", max(1, round(timeout * 1000)))
        return wire


@dataclass(frozen=True, slots=True)
class Response:
    """What one message of the server says of one choice; None where it had no such output.

    A message about n choices is n of these.
    """

    text: str = ""
    finish_reason: str | None = None
    """Why the choice has ended, in every message from then on."""
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    """New tokens of the choice in this message alone."""
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cumulative_logprob: float | None = None
    index: int = 0
    """Which choice, from 0."""
    prompt_logprobs: PromptLogprobs | None = None
    """In the first message, for its first choice."""
    cached_tokens: int | None = None
    cost: Cost | None = None
    """In the last message, if it was asked for."""

    @property
    def is_empty(self) -> bool:
        """It has nothing new."""
        news = (self.text, self.finish_reason, self.num_output_tokens, self.token_ids)
        return not any(news) and self.prompt_logprobs is None


class Transport(Protocol):
    """Carries generations to a server. Used by many threads at once."""

    def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> Generator[Response, None, None]:
        """Send the request at the first `next()`; closing the generator cancels it.

        `timeout` is in seconds. Raises an OctavoError for every failure of server or network.
        """
        ...

    def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        """Ask for the server's state; never raises for a server that cannot be reached."""
        ...

    def close(self) -> None:
        """Release the connection; running generations are cancelled."""
        ...


class AsyncTransport(Protocol):
    """Transport for asyncio. Used by many tasks of one event loop."""

    def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> AsyncGenerator[Response, None]:
        """See `Transport.stream`."""
        ...

    async def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        """See `Transport.health`."""
        ...

    async def close(self) -> None:
        """See `Transport.close`."""
        ...
