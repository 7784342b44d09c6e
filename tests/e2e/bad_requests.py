"""Requests that must be refused, and the words to do it with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.streams import Value
from tests.e2e.target import VOCAB_SIZE, prompt_ids

CONTEXT = 2048
MEGABYTES_10 = 10_000_000


@dataclass(frozen=True)
class BadRequest:
    """`error` is how the refusal must begin: field and value; `limit` must be in it too."""

    name: str
    error: str
    limit: str
    params: dict[str, Any] | str | bytes = field(default_factory=dict)
    inputs: dict[str, Value] = field(default_factory=lambda: {"input_ids": [10, 11]})

    @property
    def tensors(self) -> dict[str, Value]:
        text = self.params
        return {
            "stream": True,
            "sampling_parameters": json.dumps(text) if isinstance(text, dict) else text,
            **self.inputs,
        }

    @property
    def body(self) -> bytes:
        """For HTTP. Bytes that are no text go in as they are."""
        values = {
            name: value.decode("latin-1") if isinstance(value, bytes) else value
            for name, value in self.tensors.items()
        }
        return json.dumps(values, ensure_ascii=False).encode("latin-1")


def _param(name: str, value: Any, limit: str, got: str | None = None) -> BadRequest:
    shown = got or f"{name}: got {value}"
    return BadRequest(f"{name}={str(value)[:20]}", shown, limit, params={name: value})


def _json(name: str, text: str | bytes, got: str, limit: str) -> BadRequest:
    return BadRequest(name, f"sampling_parameters: got {got}", limit, params=text)


def _prompt(name: str, error: str, limit: str, **inputs: Value) -> BadRequest:
    return BadRequest(name, error, limit, inputs=inputs)


_OVER = prompt_ids(CONTEXT)

BAD_REQUESTS = [
    _prompt("empty text", "text_input: got an empty text", "at least 1 character", text_input=""),
    _prompt("empty ids", "prompt: got 0 tokens", "at least 1 token", input_ids=[]),
    _prompt("prompt as long as the context", "prompt: got 2048 tokens", "2047", input_ids=_OVER),
    _prompt("id out of the vocabulary", f"input_ids: got {VOCAB_SIZE}", f"{VOCAB_SIZE - 1}",
            input_ids=[10, VOCAB_SIZE]),
    _prompt("negative id", "input_ids: got -1", "0", input_ids=[10, -1]),
    _prompt("two prompts", "prompt: got text_input and input_ids", "exactly one",
            text_input="a", input_ids=[10]),
    _prompt("no prompt", "prompt: got none", "exactly one"),
    _prompt("text that is not UTF-8", "text_input: got byte 0xff at offset 3", "UTF-8",
            text_input=b"abc\xff\xfe"),
    _prompt("10 MB of text", f"text_input: got {MEGABYTES_10} bytes", "at most",
            text_input="a" * MEGABYTES_10),
    _prompt("10 MB of ids", "prompt: got 2500000 tokens", "2047",
            input_ids=[10] * (MEGABYTES_10 // 4)),
    _prompt("messages that are no list", "messages: got {}", "JSON array", messages="{}"),
    _prompt("message without content", "messages[0]: got", '"content"',
            messages='[{"role": "user"}]'),
    _prompt("prompt in a stream", "Error generating stream: When streaming, ", "is not allowed",
            input_ids=[10], exclude_input_in_output=False),
    _param("max_tokens", CONTEXT, "at most 2046: the context is 2048 tokens and the prompt has 2"),
    _param("max_tokens", -1, "1"),
    _param("max_tokens", 0, "1"),
    _param("max_tokens", 1.5, "integer"),
    _param("max_tokens", None, "integer"),
    _param("max_tokens", "many", "integer"),
    _param("temprature", 1, "unknown parameter; known: n, temperature"),
    _param("temperature", "hot", "number"),
    _param("temperature", -1, "0"),
    _param("temperature", float("nan"), "finite"),
    _param("temperature", float("inf"), "finite", got="temperature: got inf"),
    _param("temperature", True, "number"),
    _param("top_p", 0, "greater than 0"),
    _param("top_p", 1.01, "1"),
    _param("top_p", float("nan"), "finite"),
    _param("top_k", -2, "-1"),
    _param("n", 0, "1"),
    _param("n", 10**6, "4096"),
    _param("n", 33, "at most max_num_seqs = "),
    _param("min_p", 1.5, "1"),
    _param("presence_penalty", 2.5, "2"),
    _param("frequency_penalty", -2.5, "-2"),
    _param("repetition_penalty", 0, "greater than 0"),
    _param("bad_words", [""], "at least 1 character", got="bad_words[0]: got "),
    _param("bad_words", ["x"] * 129, "128", got="bad_words: got "),
    _param("logit_bias", {"10": 101}, "100", got="logit_bias[10]: got 101"),
    _param("logit_bias", {str(VOCAB_SIZE): 1}, f"{VOCAB_SIZE - 1}", got="logit_bias: got 4096"),
    _param("logit_bias", {"-1": 1}, "0", got="logit_bias: got -1"),
    _param("allowed_token_ids", [], "at least 1", got="allowed_token_ids: got []"),
    _param("allowed_token_ids", [VOCAB_SIZE], f"{VOCAB_SIZE - 1}",
           got="allowed_token_ids: got 4096"),
    BadRequest("nothing allowed", "allowed_token_ids: got [10]", "no token is left",
               params={"allowed_token_ids": [10], "stop_token_ids": [10], "min_tokens": 2}),
    _param("prompt_logprobs", 21, "20"),
    _param("include_stop_str_in_output", "perhaps", "boolean"),
    _param("skip_special_tokens", "perhaps", "boolean"),
    _param("tenant", "a b", "pattern"),
    _param("tenant", 7, "string"),
    _param("cache", "perhaps", "boolean"),
    _param("logprobs", 200, "20"),
    _param("min_tokens", 99, "at most max_tokens = 16"),
    _param("stop", 7, "valid"),
    _param("stop", [""], "at least 1 character", got="stop[0]: got "),
    _param("stop_token_ids", [VOCAB_SIZE], f"{VOCAB_SIZE - 1}", got="stop_token_ids: got 4096"),
    _param("stop_token_ids", [-1], "0", got="stop_token_ids[0]: got -1"),
    _param("seed", 2**64, "less than"),
    _param("priority", 0, "1"),
    _param("deadline_ms", 0, "1"),
    _json("JSON cut short", '{"max_tokens": ', '{"max_tokens": ', "JSON is expected"),
    _json("JSON that is no object", "[1]", "[1]", "a JSON object is expected"),
    _json("JSON nested too deep", "[" * 100_000, "[[[", "JSON is expected"),
    _json("JSON that is not UTF-8", b'{"stop": "\xff"}', "byte 0xff at offset 10", "UTF-8"),
]  # fmt: skip
