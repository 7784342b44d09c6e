"""The additional outputs in combination: all pairs of all options, and some at random."""

import json
import random
from itertools import combinations, product
from typing import Any

import pytest
from tritonclient.grpc import InferResult

from octavo.cli.paths import default_model
from octavo.serving.tokenizer import Tokenizer
from tests.contract.calls import GREEDY, PROMPT, Server

pytestmark = pytest.mark.e2e

OPTIONS: dict[str, list[Any]] = {
    "stream": [True, False],
    "logprobs": [None, 0, 2],
    "return_finish_reason": [None, True, False],
    "return_cumulative_logprob": [None, True, False],
    "return_logprobs": [None, True, False],
    "return_num_input_tokens": [None, True, False],
    "return_num_output_tokens": [None, True, False],
}
MAX_TOKENS = 16


def combined(num_random: int) -> list[dict[str, Any]]:
    """Combinations of OPTIONS that hold each pair of two options' values at least once."""
    every = [dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]
    random.Random(0).shuffle(every)
    chosen, seen = every[:num_random], set()
    for options in chosen + every:
        pairs = set(combinations(options.items(), 2))
        if pairs - seen and options not in chosen:
            chosen.append(options)
        seen |= pairs
    return chosen


def named(options: dict[str, Any]) -> str:
    letters = {True: "t", False: "f", None: "-"}
    return "".join(letters[v] if k != "logprobs" else str(v or "-") for k, v in options.items())


@pytest.mark.parametrize("options", combined(num_random=10), ids=named)
def test_model_sends_additional_outputs(flat: Server, options: dict[str, Any]) -> None:
    flags = {name: value for name, value in options.items() if name != "logprobs"}
    sampling: dict[str, Any] = {**GREEDY}
    if options["logprobs"] is not None:
        sampling["logprobs"] = options["logprobs"]
    answer = flat.infer(sampling=sampling, **flags)
    assert not answer.errors and answer.results
    for name in ("finish_reason", "cumulative_logprob", "num_input_tokens", "num_output_tokens"):
        if not options[f"return_{name}"]:
            assert set(answer.values(name)) == {None}
    if options["return_finish_reason"]:
        assert answer.values("finish_reason") == ["None"] * (len(answer.results) - 1) + ["length"]
    if options["return_cumulative_logprob"]:
        sums = answer.values("cumulative_logprob")
        assert sums == sorted(set(sums), reverse=True) and sums[0] < 0
    if options["return_num_input_tokens"]:
        assert set(answer.values("num_input_tokens")) == {num_prompt_tokens()}
    if options["return_num_output_tokens"]:
        counts = answer.values("num_output_tokens")
        assert min(counts) > 0 and sum(counts) == MAX_TOKENS
    for result in answer.results:
        assert_logprobs(result, options)


def assert_logprobs(result: InferResult, options: dict[str, Any]) -> None:
    array = result.as_numpy("logprobs")
    if not options["return_logprobs"]:
        assert array is None
        return
    positions = json.loads(array.item())
    if options["logprobs"] is None:
        assert positions is None
        return
    if options["return_num_output_tokens"]:
        assert len(positions) == result.as_numpy("num_output_tokens").item()
    joined = "" if options["stream"] else PROMPT
    for position in positions:
        assert 1 <= len(position) <= options["logprobs"] + 1
        for token_id, entry in position.items():
            assert token_id.isdigit() and set(entry) == {"logprob", "rank", "decoded_token"}
            assert isinstance(entry["logprob"], float) and isinstance(entry["rank"], int)
        (best,) = [entry for entry in position.values() if entry["rank"] == 1]
        joined += best["decoded_token"]
    assert joined == result.as_numpy("text_output").item().decode()


def num_prompt_tokens() -> int:
    return len(Tokenizer(default_model()).encode(PROMPT))
