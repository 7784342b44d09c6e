"""Servers that answer what a test tells them to: what those of both protocols have in common."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Script = Callable[["Received"], Iterator[Any]]
RECEIPT: dict[str, Any] = {
    "usd": 0.0002, "prefill_usd": 0.00015, "decode_usd": 0.00005, "prefill_s": 0.15,
    "decode_s": 0.05, "cached_tokens": 2, "saved_usd": 0.0001, "saved_s": 0.1, "held_usd": 0.00001,
    "held_s": 0.01, "queue_s": 0.25, "price_usd_per_hour": 3.2, "price_as_of": "2026-11-20",
    "of_newer_servers": 1,
}  # fmt: skip
Columns = dict[str, tuple[str, list[Any]]]
"""Datatype and elements of each output."""


@dataclass
class Received(ABC):
    """One generation, as the server saw it. A script yields what the methods here return."""

    metadata: dict[str, str]
    """The headers, in lower case."""
    request_id: str
    model_version: str
    ended: threading.Event = field(default_factory=threading.Event, kw_only=True)
    """The call is over, in whatever way."""
    completed: bool = field(default=False, kw_only=True)
    """The script came to its end before the call did: nobody cancelled it."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """The values by name; a single element is unwrapped."""

    @property
    @abstractmethod
    def wanted(self) -> set[str]:
        """The outputs that were asked for."""

    @abstractmethod
    def response(self, columns: Columns, final: bool) -> Any:
        """A message with these outputs."""

    @abstractmethod
    def flag_only(self) -> Any:
        """The empty final response."""

    @abstractmethod
    def error(self, text: str) -> Any:
        """A model's error, which is the last response."""

    @abstractmethod
    def front_end_error(self, text: str) -> Any:
        """An error of Triton's front end: the model has not seen the request."""

    @property
    def sampling(self) -> dict[str, Any]:
        parsed = json.loads(self.inputs["sampling_parameters"])
        assert isinstance(parsed, dict)
        return parsed

    def reply(
        self,
        text: str | list[str],
        finish_reason: str | list[str] = "None",
        *,
        tokens: int | list[int] = 1,
        final: bool | None = None,
        token_ids: list[int] | None = None,
        logprobs: Any = None,
        cumulative: float | list[float] = 0.0,
        prompt_logprobs: Any = None,
        cost: Any = RECEIPT,
    ) -> Any:
        """A response with the outputs that were asked for; final if all have a finish reason.

        Of several choices, give lists; then `logprobs` is a list with what each has.
        """
        texts, reasons, counts = _listed(text), _listed(finish_reason), _listed(tokens)
        ids = list(range(sum(counts))) if token_ids is None else token_ids
        positions = logprobs if isinstance(text, list) and logprobs else [logprobs] * len(texts)
        columns: Columns = {
            "text_output": ("BYTES", texts),
            "finish_reason": ("BYTES", reasons),
            "num_input_tokens": ("UINT32", [3]),
            "num_output_tokens": ("UINT32", counts),
            "token_ids": ("INT32", ids),
            "logprobs": ("BYTES", [json.dumps(entry) for entry in positions]),
            "cumulative_logprob": ("FP32", _listed(cumulative)),
            "prompt_logprobs": ("BYTES", [json.dumps(prompt_logprobs)]),
            "cached_tokens": ("UINT32", [2]),
        }
        is_final = "None" not in reasons if final is None else final
        columns["cost"] = ("BYTES", [json.dumps(cost if is_final else None)])
        return self.response({n: columns[n] for n in columns if n in self.wanted}, is_final)

    def wait_for_end(self) -> None:
        """Stay silent until the client leaves."""
        assert self.ended.wait(10), "the client is still there"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def say_hello(call: Received) -> Iterator[Any]:
    """Three chunks, the last of them final; or all at once."""
    if not call.inputs["stream"]:
        yield call.reply("Hello, world", "stop", tokens=3)
        return
    yield call.reply("Hello")
    yield call.reply(", wor")
    yield call.reply("ld", "stop")


class ScriptedServer(ABC):
    """Set `script` to decide the answers; `received` keeps the calls."""

    url: str

    def __init__(self, *, batched: bool = True) -> None:
        self.batched = batched
        self.script: Script = say_hello
        self.received: list[Any] = []
        self.arrived = threading.Semaphore(0)
        self.metadata_queries = 0
        self.model_ready = True
        self.takes_text = True
        self.counts_cached_tokens = False

    @abstractmethod
    def stop(self) -> None: ...

    @property
    def last(self) -> Any:
        return self.received[-1]

    @property
    def input_shapes(self) -> dict[str, tuple[str, list[int]]]:
        """What the model's metadata says, as far as it matters here."""
        shape = [-1, 1] if self.batched else [1]
        inputs = {"stream": ("BOOL", shape)}
        if self.takes_text:
            inputs["text_input"] = ("BYTES", shape)
        if self.counts_cached_tokens:
            inputs["return_cached_tokens"] = ("BOOL", shape)
        return inputs

    def run(self, call: Received) -> Iterator[Any]:
        """What the script says, with the call kept."""
        self.received.append(call)
        self.arrived.release()
        yield from self.script(call)
        call.completed = not call.ended.is_set()
