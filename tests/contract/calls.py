"""Calls of a running server as its clients make them: tritonclient over gRPC, JSON over HTTP."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from octavo.cli.server_settings import ServerSettings

PROMPT = "In this example,"
# As vllm_backend's clients write them: numbers as text.
GREEDY = {"temperature": "0", "top_p": "1", "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over one stream."""

    results: list[grpcclient.InferResult]
    errors: list[InferenceServerException]

    def values(self, output: str) -> list[Any]:
        """One output's elements over all responses; bytes as text. None where it is absent."""
        assert not self.errors, self.errors
        values: list[Any] = []
        for result in self.results:
            array = result.as_numpy(output)
            elements = [None] if array is None else array.reshape(-1).tolist()
            values += [e.decode() if isinstance(e, bytes) else e for e in elements]
        return values

    @property
    def text(self) -> str:
        return "".join(self.values("text_output"))

    @property
    def error(self) -> str:
        """The message of the only response, an error."""
        assert not self.results
        (error,) = self.errors
        return str(error.message())


class Server:
    """A running server, known by its settings."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.batched = settings.contract == "batched"
        self.model_url = f"{settings.http_url}/v2/models/{settings.model_name}"

    def infer(
        self,
        text: str | None = PROMPT,
        *,
        sampling: dict[str, Any] | str | None = None,
        outputs: list[str] | None = None,
        parameters: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> Answer:
        """One request over a stream of its own. `inputs` are single values, or arrays that are
        sent as they are; those that are None are left out."""
        answer = Answer([], [])
        with self.client() as client:
            client.start_stream(callback=collect_into(answer))
            self.send(client, text, sampling, outputs, parameters, **inputs)
            client.stop_stream()
        return answer

    def client(self) -> grpcclient.InferenceServerClient:
        return grpcclient.InferenceServerClient(self.settings.grpc_url)

    def send(
        self,
        client: grpcclient.InferenceServerClient,
        text: str | None = PROMPT,
        sampling: dict[str, Any] | str | None = None,
        outputs: list[str] | None = None,
        parameters: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> None:
        if sampling is not None and not isinstance(sampling, str):
            sampling = json.dumps(sampling)
        client.async_stream_infer(
            self.settings.model_name,
            self.inputs(text_input=text, sampling_parameters=sampling, **inputs),
            outputs=outputs and [grpcclient.InferRequestedOutput(name) for name in outputs],
            parameters=parameters,
        )

    def inputs(self, **values: Any) -> list[grpcclient.InferInput]:
        return [self._input(name, value) for name, value in values.items() if value is not None]

    def _input(self, name: str, value: Any) -> grpcclient.InferInput:
        array = value if isinstance(value, np.ndarray) else self.shaped([value])
        tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        return tensor

    def shaped(self, values: list[Any]) -> NDArray[Any]:
        """[n], with a batch dimension of 1 before it in the batched form."""
        encoded = [value.encode() if isinstance(value, str) else value for value in values]
        array = np.array(encoded, dtype=object if isinstance(encoded[0], bytes) else None)
        return array[None] if self.batched else array

    def post(self, route: str, body: Any, model: str | None = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        name = model or self.settings.model_name
        url = f"{self.settings.http_url}/v2/models/{name}/{route}"
        return httpx.post(url, content=content, timeout=60, trust_env=False)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample at /metrics; 0 if there is none."""
        text = httpx.get(self.settings.metrics_url, trust_env=False).text
        for line_labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
            if all(f'{key}="{wanted}"' in line_labels for key, wanted in labels.items()):
                return float(value)
        return 0.0

    def settled_metric(self, name: str, **labels: str) -> float:
        """With everything in it that has happened so far: metrics are up to a second old."""
        time.sleep(1.2)
        return self.metric(name, **labels)


def collect_into(
    answer: Answer, first: threading.Event | None = None
) -> Callable[[grpcclient.InferResult, InferenceServerException], None]:
    """A stream's callback; sets `first` with the first response."""

    def collect(result: grpcclient.InferResult, error: InferenceServerException) -> None:
        if error is not None:
            answer.errors.append(error)
        else:
            answer.results.append(result)
        if first is not None:
            first.set()

    return collect


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events; checks its framing."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *frames, end = response.text.split("\n\n")
    assert end == "" and all(frame.startswith("data: ") for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]
