"""A client runs over any transport."""

from __future__ import annotations

from collections.abc import Generator

from octavo_client import Client, GenerationRequest, Health, Response, Usage


class ScriptedTransport:
    """Answers without a network."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.closed = 0

    def stream(
        self, request: GenerationRequest, timeout: float | None
    ) -> Generator[Response, None, None]:
        self.requests.append(request)
        yield Response("Hello", num_input_tokens=2, num_output_tokens=1)
        yield Response("!", "stop", num_output_tokens=1)
        yield Response()

    def health(self, model: str, model_version: str, timeout: float | None) -> Health:
        return Health(True, True, model == "other")

    def close(self) -> None:
        self.closed += 1


def test_client_over_another_transport() -> None:
    transport = ScriptedTransport()

    with Client(model="other", transport=transport) as client:
        answer = client.generate("Say hello", timeout=5, max_tokens=2)
        assert client.health().ok

    assert (answer.text, answer.usage) == ("Hello!", Usage(2, 2))
    assert transport.closed == 1
    (request,) = transport.requests
    assert (request.model, request.text, request.stream) == ("other", "Say hello", False)
    assert request.sampling_json(5) == {"max_tokens": 2, "deadline_ms": 5000}
