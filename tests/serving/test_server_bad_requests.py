"""Requests that cannot be served: one argument error each, and nothing for their neighbours."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.serving.harness import GREEDY, Request, Served, all_flags, request

# The toy model's context and vocabulary.
CONTEXT, VOCAB = 256, 512


def ids(*values: int) -> NDArray[np.int32]:
    return np.array([values], dtype=np.int32)


def texts(*values: str | bytes) -> NDArray[Any]:
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(encoded, dtype=object)[:, None]


# name: (inputs of the request, how the message begins, what else it says)
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no prompt": ({"text": None}, "prompt: got none", "exactly one of text_input"),
    "empty prompt": ({"text": ""}, "text_input: got an empty text", "at least 1 character"),
    "two prompts": (
        {"text": "A", "input_ids": ids(5)}, "prompt: got text_input and input_ids", "exactly one"
    ),
    "three prompts": (
        {"text": "A", "messages": "[]", "input_ids": ids(5)},
        "prompt: got text_input and messages and input_ids", "exactly one",
    ),
    "two texts": ({"text": texts("A", "B")}, "text_input: got shape [2, 1]", "one element"),
    "zero texts": ({"text": texts()}, "text_input: got shape [0, 1]", "one element"),
    "two flags": (
        {"stream": np.array([[True], [False]])}, "stream: got shape [2, 1]", "one element"
    ),
    "two rows of ids": (
        {"text": None, "input_ids": np.ones((2, 1), np.int32)},
        "input_ids: got shape [2, 1]", "one element per request",
    ),
    "no ids": ({"text": None, "input_ids": ids()}, "prompt: got 0 tokens", "at least 1 token"),
    "a negative id": ({"text": None, "input_ids": ids(5, -7)}, "input_ids: got -7", "begin at 0"),
    "an id beyond the vocabulary": (
        {"text": None, "input_ids": ids(5, VOCAB)}, "input_ids: got 512", "0 to 511"
    ),
    "a prompt as long as the context": (
        {"text": None, "input_ids": ids(*[5] * CONTEXT)}, "prompt: got 256 tokens", "at most 255"
    ),
    "a text longer than the context": (
        {"text": "A" * CONTEXT}, "prompt: got 257 tokens", "at most 255"
    ),
    "10 MB of text": ({"text": "A" * 10**7}, "text_input: got 10000000 bytes", "at most"),
    "10 million ids": (
        {"text": None, "input_ids": np.full((1, 10**7), 5, np.int32)},
        "prompt: got 10000000 tokens", "at most 255",
    ),
    "max_tokens over the context": (
        {"sampling": {"max_tokens": 255}}, "max_tokens: got 255", "at most 254"
    ),
    "text that is not UTF-8": (
        {"text": b"A\xff\xfe"}, "text_input: got byte 0xff at offset 1", "UTF-8"
    ),
    "parameters that are not UTF-8": (
        {"sampling_parameters": b"{\xff}"}, "sampling_parameters: got byte 0xff", "UTF-8"
    ),
    "malformed JSON": (
        {"sampling": '{"n": 1'}, 'sampling_parameters: got {"n": 1;', "JSON is expected"
    ),
    "JSON of another type": (
        {"sampling": "[1]"}, "sampling_parameters: got [1]", "a JSON object is expected"
    ),
    "deeply nested JSON": (
        {"sampling": "[" * 10**5}, "sampling_parameters: got [[[", "JSON is expected"
    ),
    "a deeply nested value": (
        {"sampling": '{"seed":' + "[" * 500 + "]" * 500 + "}"}, "seed: got [[[", "integer"
    ),
    "half a surrogate pair": (
        {"sampling": '{"stop": "\\ud800"}'}, "sampling_parameters: got {", "surrogates not allowed"
    ),
    "half a surrogate pair as a name": (
        {"sampling": '{"\\ud800": 1}'}, "sampling_parameters: got {", "surrogates not allowed"
    ),
    "an unknown parameter": (
        {"sampling": {"beams": 4}}, "beams: got 4", "unknown parameter; known: "
    ),
    "an unknown request parameter": (
        {"parameters": {"beams": 4}}, "beams: got 4", "unknown parameter; known: "
    ),
    "n of a million": ({"sampling": {"n": 10**6}}, "n: got 1000000", "less than or equal to"),
    "200 logprobs": ({"sampling": {"logprobs": 200}}, "logprobs: got 200", "equal to 20"),
    "min_tokens over max_tokens": (
        {"sampling": {"min_tokens": 9, "max_tokens": 8}}, "min_tokens: got 9", "max_tokens = 8"
    ),
    "a stop token beyond the vocabulary": (
        {"sampling": {"stop_token_ids": [VOCAB]}}, "stop_token_ids: got 512", "0 to 511"
    ),
    "an empty stop string": ({"sampling": {"stop": ["a", ""]}}, "stop[1]: got ''", "1 character"),
    "too many stop strings": ({"sampling": {"stop": ["a"] * 17}}, "stop: got ", "16"),
    "a number as a stop string": ({"sampling": {"stop": [3]}}, "stop[0]: got 3", "string"),
    "NaN": ({"sampling": '{"temperature": NaN}'}, "temperature: got nan", "finite"),
    "NaN as text": ({"sampling": {"top_p": "nan"}}, "top_p: got nan", "finite"),
    "infinity": ({"sampling": '{"temperature": 1e999}'}, "temperature: got inf", "finite"),
    "a negative temperature": ({"sampling": {"temperature": -1}}, "temperature: got -1", "0"),
    "top_p of zero": ({"sampling": {"top_p": 0}}, "top_p: got 0", "greater than 0"),
    "a negative max_tokens": ({"sampling": {"max_tokens": -1}}, "max_tokens: got -1", "to 1"),
    "a fraction for a count": ({"sampling": {"max_tokens": 1.5}}, "max_tokens: got 1.5", "integer"),
    "a boolean for a count": ({"sampling": {"max_tokens": True}}, "max_tokens: got True", "number"),
    "a word for a number": ({"sampling": {"seed": "one"}}, "seed: got one", "integer"),
    "thousands of digits": ({"sampling": {"seed": "9" * 9999}}, "seed: got 999", "integer"),
    "messages without a template": (
        {"text": None, "messages": '[{"role": "user", "content": "hi"}]'},
        "messages: got 1 messages", "no chat template",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def served(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(random_folder, tmp_path_factory.mktemp("model") / "1")
    yield served
    served.check()


def bad_request(name: str) -> Request:
    inputs = BAD[name][0]
    return request(**{"text": "A", **inputs})


def assert_refused(asked: Request, name: str) -> None:
    _, beginning, rest = BAD[name]
    assert asked.error is not None
    code, message = asked.error
    assert code == "INVALID_ARG"
    assert message.startswith(beginning)
    assert rest in message[len(beginning) :]
    assert len(message) < 700
    assert len(asked.sender.responses) == 1


@pytest.mark.parametrize("name", BAD)
def test_server_refuses(served: Served, name: str) -> None:
    bad = bad_request(name)
    begin_s = time.thread_time()
    served.execute(bad)
    assert bad.sender.finished.is_set(), "an argument error needs no step of the engine"
    assert time.thread_time() - begin_s < 1
    assert_refused(bad, name)


def test_server_serves_the_neighbours_of_refused_requests(served: Served) -> None:
    prompts = [f"{index} lead" for index in range(len(BAD) + 1)]
    sampling = {**GREEDY, "max_tokens": 6}
    alone = [served.ask(text, sampling=sampling, **all_flags()).token_ids for text in prompts]
    assert len({tuple(token_ids) for token_ids in alone}) > len(alone) / 2
    good = [request(text, sampling=sampling, **all_flags()) for text in prompts]
    bad = {name: bad_request(name) for name in BAD}
    mixed = [each for pair in zip(good, bad.values(), strict=False) for each in pair] + [good[-1]]
    served.execute(*mixed)
    assert [each.token_ids for each in good] == alone
    for name, each in bad.items():
        assert_refused(each, name)


def test_server_answers_a_refused_request_before_its_neighbour_has_room(
    serve: Callable[..., Served], scripted_folder: Path
) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=0)
    long = request("A", sampling={**GREEDY, "max_tokens": 200})
    good, bad = request("A", sampling=GREEDY), bad_request("NaN")
    thread = served.execute_aside(long, good, bad)
    bad.wait()
    assert not good.sender.finished.is_set()
    thread.join()
    assert_refused(bad, "NaN")


@pytest.mark.parametrize("text", ["{}", "3", "[]", "[1]", '[{"role": "user"}]', "[", "null"])
def test_server_refuses_messages(served: Served, text: str) -> None:
    asked = served.ask(None, messages=text)
    assert asked.error is not None and asked.error[0] == "INVALID_ARG"
    assert asked.error[1].startswith("messages")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user"}, 'an object with a text "content"'),
        ({"role": 1, "content": "x"}, 'an object with a text "role"'),
        ({"role": "user", "content": ["x"]}, 'an object with a text "content"'),
        ("user", 'an object with a text "role"'),
    ],
)
def test_server_names_the_bad_message(served: Served, message: object, expected: str) -> None:
    asked = served.ask(None, messages=json.dumps([{"role": "user", "content": "x"}, message]))
    assert asked.error is not None
    assert asked.error[1].startswith("messages[1]: got ") and expected in asked.error[1]


def test_server_counts_refused_requests_apart(served: Served) -> None:
    before = served.stats.invalid
    finished = served.stats.finished.total()
    served.ask("")
    served.ask("A", sampling={"max_tokens": 10**6})  # refused by the engine
    assert served.stats.invalid == before + 2
    assert served.stats.finished.total() == finished
