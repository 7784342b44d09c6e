"""Whoever asks gets the same greedy text: tritonclient over both protocols, curl, our client."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import np_to_triton_dtype

from octavo_client import Client
from tests.e2e.target import MODEL, Target

NUM_PROMPTS = 20
SAMPLING = {"temperature": 0, "max_tokens": 32, "ignore_eos": True}
SAMPLING_JSON = json.dumps(SAMPLING)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Beginnings of held-out documents, of 10 to 390 characters, and some that are not ASCII."""
    lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"][: 10 + 20 * i] for i, line in enumerate(lines[:17])]
    return [*texts, "naïve façade: “quoted”", "日本語の文書、", 'a\n\tb \\ "c" {d} 🙂']


@pytest.fixture(scope="module", params=["flat", "batched"])
def served(request: pytest.FixtureRequest) -> Target:
    chosen: Target = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="module")
def expected(served: Target, prompts: list[str]) -> list[str]:
    """By gRPC streaming, as the tests of generation hold it against transformers."""
    texts = [served.generate(prompt, max_tokens=SAMPLING["max_tokens"]).text for prompt in prompts]
    assert len(set(texts)) > NUM_PROMPTS // 2 and all(texts)
    return texts


def infer_inputs(target: Target, kind: Any, prompt: str) -> list[Any]:
    values: dict[str, Any] = {
        "text_input": prompt.encode(),
        "sampling_parameters": SAMPLING_JSON.encode(),
        "exclude_input_in_output": True,
    }
    made = []
    for name, value in values.items():
        array = np.array([value], dtype=object if isinstance(value, bytes) else bool)
        array = array[None] if target.batched else array
        made.append(kind(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def by_tritonclient_http(target: Target, prompt: str) -> str:
    with httpclient.InferenceServerClient(target.settings.http_url.split("//")[1]) as client:
        result = client.infer("llm_unary", infer_inputs(target, httpclient.InferInput, prompt))
    return str(result.as_numpy("text_output").item().decode())


def by_tritonclient_grpc(target: Target, prompt: str) -> str:
    with grpcclient.InferenceServerClient(target.settings.grpc_url) as client:
        result = client.infer("llm_unary", infer_inputs(target, grpcclient.InferInput, prompt))
    return str(result.as_numpy("text_output").item().decode())


def by_curl(target: Target, prompt: str, route: str = "generate", **more: Any) -> str:
    curl = shutil.which("curl")
    assert curl is not None, "curl is not installed"
    body = {"text_input": prompt, "sampling_parameters": SAMPLING_JSON, **more}
    command = [curl, "-sSN", "--fail-with-body", "--noproxy", "*", "-d", "@-"]
    url = f"{target.settings.http_url}/v2/models/llm/{route}"
    done = subprocess.run(
        [*command, url],
        input=json.dumps(body).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout.decode()


def by_curl_generate(target: Target, prompt: str) -> str:
    answer = json.loads(by_curl(target, prompt, exclude_input_in_output=True))
    return str(answer["text_output"])


def by_curl_stream(target: Target, prompt: str) -> str:
    events = by_curl(target, prompt, "generate_stream", stream=True).split("\n\n")
    return "".join(json.loads(event[6:])["text_output"] for event in events if event)


def by_our_client(url: Callable[[Target], str], stream: bool) -> Callable[[Target, str], str]:
    def ask(target: Target, prompt: str) -> str:
        with Client(url(target)) as client:
            if stream:
                return "".join(c.text for c in client.stream(prompt, **SAMPLING))  # type: ignore[arg-type]
            return client.generate(prompt, **SAMPLING).text  # type: ignore[arg-type]

    return ask


WAYS: dict[str, Callable[[Target, str], str]] = {
    "tritonclient.http": by_tritonclient_http,
    "tritonclient.grpc": by_tritonclient_grpc,
    "curl generate": by_curl_generate,
    "curl generate_stream": by_curl_stream,
    "octavo_client gRPC": by_our_client(lambda target: target.settings.grpc_url, stream=False),
    "octavo_client gRPC stream": by_our_client(lambda t: t.settings.grpc_url, stream=True),
    "octavo_client HTTP": by_our_client(lambda target: target.settings.http_url, stream=False),
    "octavo_client HTTP stream": by_our_client(lambda t: t.settings.http_url, stream=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_client_gets_the_same_greedy_text(
    served: Target, prompts: list[str], expected: list[str], way: str
) -> None:
    assert len(prompts) == NUM_PROMPTS
    assert [WAYS[way](served, prompt) for prompt in prompts] == expected
