from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from octavo.cli import probes


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    with socket.socket() as bound:  # bound but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_token_is_the_text_of_the_first_event() -> None:
    with answering(200, 'data: {"text_output": " there"}\n\ndata: {"text_output": "!"}\n\n') as url:
        assert probes.first_token(url, 5) == " there"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, 'data: {"error": "Stub process is not healthy."}\n\n', "Stub process is not healthy"),
        (400, 'data: {"error": "no tokens"}\n\n', "no tokens"),
        (503, '{"error": "Exceeds maximum queue size"}', "Exceeds maximum queue size"),
        (500, "oops", "oops"),
        (404, "", "HTTP 404"),
        (200, "", "without an event"),
    ],
    ids=["event", "first-event", "json", "text", "empty", "no-event"],
)
def test_error_instead_of_a_token_is_told(status: int, body: str, message: str) -> None:
    with answering(status, body) as url, pytest.raises(probes.TokenError, match=message):
        probes.first_token(url, 5)


def test_nobody_there_is_an_os_error_and_not_healthy(nobody: str) -> None:
    with pytest.raises(OSError, match="refused"):
        probes.first_token(nobody, 5)
    assert not probes.is_healthy(nobody)
    assert probes.engine_up(nobody) is None


def test_health_is_status_200() -> None:
    with answering(200, "") as ready:
        assert probes.is_healthy(ready)
    with answering(400, "") as loading:
        assert not probes.is_healthy(loading)


@pytest.mark.parametrize(
    ("metrics", "up"),
    [
        (
            '# TYPE octavo_engine_up gauge\noctavo_engine_up{model="llm",version="1"} 1.000000\n',
            True,
        ),
        ('octavo_engine_up{model="a"} 1\noctavo_engine_up{model="b"} 0\n', False),
        ("octavo_engine_up 0\n", False),
        ("nv_inference_count 0\n", None),
    ],
    ids=["up", "one-down", "no-labels", "absent"],
)
def test_engine_up_is_read_from_the_metrics(metrics: str, up: bool | None) -> None:
    with answering(200, metrics) as url:
        assert probes.engine_up(url) is up


@pytest.mark.parametrize(
    ("metrics", "in_flight"),
    [
        (
            'octavo_num_requests_running{model="llm"} 2.000000\n'
            'octavo_num_requests_waiting{model="llm"} 1\n'
            'nv_inference_pending_request_count{model="llm",version="1"} 3\n',
            6,
        ),
        ("octavo_num_requests_running 0\n", 0),
        ("nv_inference_pending_request_count 3\n", None),
    ],
    ids=["running-and-queued", "idle", "unknown"],
)
def test_requests_in_flight_are_running_and_queued_ones(
    metrics: str, in_flight: int | None
) -> None:
    with answering(200, metrics) as url:
        assert probes.requests_in_flight(url) == in_flight


@pytest.mark.parametrize(
    ("metrics", "tokens"),
    [
        (
            'octavo_generation_tokens_total{model="a"} 2\n'
            'octavo_generation_tokens_total{model="b"} 3.5e+02\n',
            352,
        ),
        ("octavo_prompt_tokens_total 7\n", None),
    ],
    ids=["two-models", "absent"],
)
def test_generated_tokens_are_summed_over_models(metrics: str, tokens: float | None) -> None:
    with answering(200, metrics) as url:
        assert probes.generated_tokens(url) == tokens


def test_proxy_of_the_environment_is_not_asked(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", nobody)
    monkeypatch.setenv("no_proxy", "")
    with answering(200, "") as ready:
        assert probes.is_healthy(ready)


def quality_metrics(gate: str, *numbers: float) -> str:
    own = 'model="llm",version="1"'
    formats = f'activations="bfloat16",gate="{gate}",kv="int8",weights="int4"'
    names = ("perplexity_loss_ratio", "perplexity_loss_upper_ratio")
    return "\n".join(
        (
            f"octavo_quality_gate{{{formats},{own}}} 1.000000",
            f"octavo_quality_margin_ratio{{{own}}} 0.020000",
            *(
                f"octavo_quality_{name}{{{own}}} {value:f}"
                for name, value in zip(names, numbers, strict=False)
            ),
            "",
        )
    )


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("octavo_engine_up 1\n", None),
        (quality_metrics("unquantized"), None),
        (
            quality_metrics("pass", 0.009, 0.012),
            "weights int4, KV int8 · perplexity +0.90 % (≤ +1.20 %) of margin 2 %",
        ),
        (
            quality_metrics("warn", 0.03, 0.04),
            "weights int4, KV int8 · perplexity +3.00 % (≤ +4.00 %) of margin 2 % · NOT PASSED",
        ),
        (quality_metrics("warn"), "weights int4, KV int8 · UNGATED: no evidence that holds"),
        (quality_metrics("off"), "weights int4, KV int8 · UNGATED: the gate is off"),
    ],
)
def test_quality_is_said_in_a_line(metrics: str, said: str | None) -> None:
    with answering(200, metrics) as url:
        assert probes.quality(url) == said
