"""Questions to a running server: healthy? makes a token? engine up?"""

from __future__ import annotations

import json
import re
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

# A proxy of the environment must not come between us and our own server.
_OPENER = build_opener(ProxyHandler({}))
_SAMPLE = re.compile(r"^(\w+)(?:\{.*\})? ([-+.\deE]+)$", re.MULTILINE)
_RUNNING = "octavo_num_requests_running"
_TOKENS = "octavo_generation_tokens_total"
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_LOSS, _UPPER, _MARGIN = (
    "octavo_quality_perplexity_loss_ratio",
    "octavo_quality_perplexity_loss_upper_ratio",
    "octavo_quality_margin_ratio",
)
_QUEUED = ("octavo_num_requests_waiting", "nv_inference_pending_request_count")


class TokenError(Exception):
    """The server answered, but not with a token."""


def is_healthy(http_url: str, timeout_s: float = 2.0) -> bool:
    try:
        with _OPENER.open(f"{http_url}/v2/health/ready", timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def first_token(generate_stream_url: str, timeout_s: float) -> str:
    """Text of one generated token. Raises TokenError, or OSError when nobody answers."""
    body = {
        "text_input": "Hello",
        "stream": True,
        "sampling_parameters": json.dumps({"max_tokens": 1}),
    }
    request = Request(
        generate_stream_url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            for line in response:
                if line.startswith(b"data:"):
                    return _token_of(line.removeprefix(b"data:"))
    except HTTPError as error:
        raise TokenError(_error_text(error.read()) or f"HTTP {error.code}") from None
    except HTTPException as error:
        raise TokenError(f"{type(error).__name__}: {error}") from None
    raise TokenError("the stream ended without an event")


def engine_up(metrics_url: str) -> bool | None:
    """None when it cannot be known: the metric is absent or nobody answers."""
    values = _samples(metrics_url).get("octavo_engine_up")
    return all(value > 0 for value in values) if values else None


def requests_in_flight(metrics_url: str) -> int | None:
    """Running and queued requests, as of the engine's last flush; None when it does not say."""
    samples = _samples(metrics_url)
    if _RUNNING not in samples:
        return None
    return int(sum(sum(samples.get(name, ())) for name in (_RUNNING, *_QUEUED)))


def generated_tokens(metrics_url: str) -> float | None:
    """Output tokens since the start, as of the engine's last flush; None when it does not say."""
    values = _samples(metrics_url).get(_TOKENS)
    return sum(values) if values else None


def quality(metrics_url: str) -> str | None:
    """How what is served came past the quality gate, in a few words; None where nothing is
    quantized, or nobody says."""
    text = _scrape(metrics_url)
    gate = re.search(r"^octavo_quality_gate\{(.*)\}", text, re.MULTILINE)
    labels = dict(_LABEL.findall(gate[1])) if gate else {}
    state = labels.get("gate")
    if state is None or state == "unquantized":
        return None
    formats = f"weights {labels['weights']}, KV {labels['kv']}"
    values = {name: float(value) for name, value in _SAMPLE.findall(text)}
    loss, margin = values.get(_LOSS), values.get(_MARGIN)
    upper = values.get(_UPPER)
    if loss is None or margin is None or upper is None:
        said = "no evidence that holds" if state == "warn" else "the gate is off"
        return f"{formats} · UNGATED: {said}"
    return (
        f"{formats} · perplexity {100 * loss:+.2f} % (≤ {100 * upper:+.2f} %) of margin "
        f"{100 * margin:g} %" + ("" if state == "pass" else " · NOT PASSED")
    )


def _samples(metrics_url: str) -> dict[str, list[float]]:
    """Values by metric name, whatever the labels; empty when nobody answers."""
    found: dict[str, list[float]] = {}
    for name, value in _SAMPLE.findall(_scrape(metrics_url)):
        found.setdefault(name, []).append(float(value))
    return found


def _scrape(metrics_url: str, timeout_s: float = 2.0) -> str:
    """Empty when nobody answers."""
    try:
        with _OPENER.open(metrics_url, timeout=timeout_s) as response:
            return str(response.read().decode(errors="replace"))
    except (OSError, HTTPException):
        return ""


def _token_of(event: bytes) -> str:
    answer = json.loads(event)
    if "error" in answer:
        raise TokenError(str(answer["error"]))
    return str(answer.get("text_output", ""))


def _error_text(body: bytes) -> str:
    """Of a refusal (JSON) or of an error in place of the first event (an event after all)."""
    try:
        return str(json.loads(body.removeprefix(b"data:")).get("error", ""))
    except (ValueError, AttributeError):
        return body.decode(errors="replace").strip()[:200]
