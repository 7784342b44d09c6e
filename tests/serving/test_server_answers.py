"""Whole answers of the real model class: what is sent, in which shape, in how many responses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.sampling_params import SamplingParams
from octavo.serving import wire
from octavo.serving.incoming import copy_request
from tests.serving.checkpoints import SCRIPT, byte_level_tokenizer
from tests.serving.harness import ALL_OUTPUTS, GREEDY, Served, all_flags, ask_in_pieces, request

Serve = Callable[..., Served]


def test_server_prepends_the_prompt_when_not_streaming(scripted: Served) -> None:
    asked = scripted.ask("a tale of A", sampling={**GREEDY, "max_tokens": 4})
    assert len(asked.chunks) == 1
    assert asked.text == "a tale of ABCDE"


@pytest.mark.parametrize(("exclude", "text"), [(None, "ABCDE"), (False, "ABCDE"), (True, "BCDE")])
def test_server_answers_with_or_without_the_prompt_as_asked(
    scripted: Served, exclude: bool | None, text: str
) -> None:
    flags = {} if exclude is None else {wire.EXCLUDE_INPUT: exclude}
    assert scripted.ask("A", sampling={**GREEDY, "max_tokens": 4}, **flags).text == text


@pytest.mark.parametrize("flags", [{}, {wire.EXCLUDE_INPUT: True}])
def test_server_streams_only_what_is_new(scripted: Served, flags: dict[str, bool]) -> None:
    asked = ask_in_pieces(scripted, sampling={**GREEDY, "max_tokens": 40}, **flags)
    assert len(asked.chunks) > 1
    assert asked.text == SCRIPT[:40]


def test_server_refuses_to_stream_the_prompt(scripted: Served) -> None:
    asked = scripted.ask("A", stream=True, exclude_input_in_output=False)
    assert asked.error is not None
    code, message = asked.error
    assert code == "INVALID_ARG"
    assert message == wire.NO_PROMPT_IN_STREAM


def test_server_answers_the_same_streaming_or_not(scripted: Served) -> None:
    sampling = {"max_tokens": 30, "seed": 5, "temperature": 1.5, "logprobs": 3}
    whole = scripted.ask("A", exclude_input_in_output=True, sampling=sampling, **all_flags())
    parts = ask_in_pieces(scripted, sampling=sampling, **all_flags())
    assert parts.text == whole.text
    assert parts.token_ids == whole.token_ids
    assert [e for text in parts.values(wire.LOGPROBS) for e in json.loads(text)] == json.loads(
        whole.values(wire.LOGPROBS)[0]
    )
    assert parts.values(wire.CUMULATIVE_LOGPROB)[-1] == whole.values(wire.CUMULATIVE_LOGPROB)[0]


@pytest.mark.parametrize("output", wire.RETURN_FLAGS)
def test_server_sends_an_output_only_when_flagged_and_requested(
    scripted: Served, output: str
) -> None:
    def sent(flag: bool | None, requested: list[str]) -> set[str]:
        flags = {} if flag is None else {wire.RETURN_FLAGS[output]: flag}
        return set(scripted.ask("A", outputs=requested, **flags).chunks[0])

    assert sent(True, ALL_OUTPUTS) == {wire.TEXT_OUTPUT, output}
    assert sent(False, ALL_OUTPUTS) == sent(None, ALL_OUTPUTS) == {wire.TEXT_OUTPUT}
    assert sent(True, [wire.TEXT_OUTPUT]) == {wire.TEXT_OUTPUT}
    assert sent(True, [output]) == {output}


@pytest.mark.parametrize("batched", [True, False])
def test_server_shapes_outputs_by_the_form(
    serve: Serve, scripted_folder: Path, batched: bool
) -> None:
    served = serve(scripted_folder, batched=batched)
    sampling = {**GREEDY, "max_tokens": 5, "logprobs": 1}
    (chunk,) = served.ask("A", sampling=sampling, **all_flags()).chunks
    first = (1,) if batched else ()
    assert {name: (values.shape, values.dtype) for name, values in chunk.items()} == {
        wire.TEXT_OUTPUT: ((*first, 1), np.object_),
        wire.FINISH_REASON: ((*first, 1), np.object_),
        wire.CUMULATIVE_LOGPROB: ((*first, 1), np.float32),
        wire.LOGPROBS: ((*first, 1), np.object_),
        wire.NUM_INPUT_TOKENS: ((*first, 1), np.uint32),
        wire.NUM_OUTPUT_TOKENS: ((*first, 1), np.uint32),
        wire.TOKEN_IDS: ((*first, 5), np.int32),
        wire.PROMPT_LOGPROBS: ((*first, 1), np.object_),
        wire.CACHED_TOKENS: ((*first, 1), np.uint32),
        wire.COST: ((*first, 1), np.object_),
    }
    assert chunk[wire.TEXT_OUTPUT].reshape(-1)[0] == b"ABCDEF"


def test_server_says_none_as_finish_reason_until_the_last_response(scripted: Served) -> None:
    flags = {"return_finish_reason": True}
    length = ask_in_pieces(scripted, sampling={**GREEDY, "max_tokens": 60}, **flags)
    *earlier, last = length.values(wire.FINISH_REASON)
    assert set(earlier) == {"None"} and last == "length"
    stop = ask_in_pieces(scripted, sampling={"temperature": 0, "max_tokens": 100}, **flags)
    *earlier, last = stop.values(wire.FINISH_REASON)
    assert set(earlier) == {"None"} and last == "stop"
    assert stop.text == SCRIPT


def test_server_counts_the_tokens_of_each_response(scripted: Served) -> None:
    sampling = {**GREEDY, "max_tokens": 65}  # an emoji of four tokens among them
    asked = ask_in_pieces(scripted, sampling=sampling, **all_flags())
    sizes = [chunk[wire.TOKEN_IDS].size for chunk in asked.chunks]
    assert asked.values(wire.NUM_OUTPUT_TOKENS) == sizes
    assert sum(sizes) == 65
    assert set(asked.values(wire.NUM_INPUT_TOKENS)) == {2}
    assert byte_level_tokenizer().decode(asked.token_ids) == asked.text


def test_server_streams_no_half_character(scripted: Served) -> None:
    asked = scripted.ask("A", stream=True, sampling={**GREEDY, "max_tokens": 64})
    assert asked.text == SCRIPT[:-1]
    assert "😀" in asked.text and "\ufffd" not in asked.text


def test_server_shows_a_character_cut_by_max_tokens_as_undecodable(scripted: Served) -> None:
    before = len(SCRIPT.encode()) - len("😀|}~".encode())
    asked = scripted.ask("A", stream=True, sampling={**GREEDY, "max_tokens": before + 2})
    assert asked.text == SCRIPT.split("😀")[0] + "\ufffd"


def test_server_sums_the_cumulative_logprob_over_the_answer(scripted: Served) -> None:
    sampling = {**GREEDY, "max_tokens": 40, "logprobs": 0}
    asked = ask_in_pieces(scripted, sampling=sampling, **all_flags())
    sums, seen = [], 0.0
    for text in asked.values(wire.LOGPROBS):
        seen += sum(entry["logprob"] for each in json.loads(text) for entry in each.values())
        sums.append(seen)
    assert len(sums) > 1 and sums[-1] < -1
    assert asked.values(wire.CUMULATIVE_LOGPROB) == pytest.approx(sums)


def test_server_gives_the_cumulative_logprob_without_logprobs(scripted: Served) -> None:
    with_logprobs = scripted.ask("A", sampling={**GREEDY, "logprobs": 2}, **all_flags())
    without = scripted.ask("A", sampling=GREEDY, **all_flags())
    assert without.values(wire.LOGPROBS) == ["null"]
    assert without.values(wire.CUMULATIVE_LOGPROB) == with_logprobs.values(wire.CUMULATIVE_LOGPROB)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_server_writes_logprobs_as_json(scripted: Served, count: int) -> None:
    sampling = {**GREEDY, "max_tokens": 6, "logprobs": count}
    asked = scripted.ask("A", sampling=sampling, **all_flags())
    entries = json.loads(asked.values(wire.LOGPROBS)[0])
    assert len(entries) == 6
    for token_id, character, entry in zip(asked.token_ids, SCRIPT, entries, strict=False):
        # The sampled token is the most likely one, so it is one of the `count`.
        assert len(entry) == max(count, 1)
        assert entry[str(token_id)]["decoded_token"] == character
        assert [each["rank"] for each in entry.values()] == list(range(1, max(count, 1) + 1))
        values = [each["logprob"] for each in entry.values()]
        assert values == sorted(values, reverse=True) and values[0] < 0


def test_server_adds_an_unlikely_sampled_token_to_the_most_likely_ones(scripted: Served) -> None:
    sampling = {"temperature": 100, "seed": 1, "max_tokens": 8, "logprobs": 2, "ignore_eos": True}
    asked = scripted.ask("A", sampling=sampling, **all_flags())
    entries = json.loads(asked.values(wire.LOGPROBS)[0])
    assert all(len(entry) == 3 for entry in entries)
    for token_id, entry in zip(asked.token_ids, entries, strict=True):
        ranks = {key: each["rank"] for key, each in entry.items()}
        assert ranks.pop(str(token_id)) > 2
        assert sorted(ranks.values()) == [1, 2]


def test_server_takes_token_ids_as_the_prompt(scripted: Served) -> None:
    ids = byte_level_tokenizer().encode("to A").ids
    array = np.array([ids], dtype=np.int32)
    by_ids = scripted.ask(None, input_ids=array, sampling=GREEDY, **all_flags())
    by_text = scripted.ask("to A", sampling=GREEDY, **all_flags())
    assert by_ids.token_ids == by_text.token_ids
    assert by_ids.text == by_text.text == "to ABCDEFGHIJKLMNOPQ"
    assert by_ids.values(wire.NUM_INPUT_TOKENS) == [len(ids)]


SAMPLED: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "seed": 3, "top_k": 50}


def test_server_reads_request_parameters_when_the_json_is_absent(scripted: Served) -> None:
    expected = scripted.ask("A", sampling=SAMPLED, **all_flags()).token_ids
    assert expected != scripted.ask("A", sampling={**SAMPLED, "seed": 4}, **all_flags()).token_ids
    own_of_triton = {"triton_enable_empty_final_response": True, "id": "my request"}
    parameters = {**SAMPLED, **own_of_triton}
    assert scripted.ask("A", parameters=parameters, **all_flags()).token_ids == expected
    as_text = {name: str(value) for name, value in SAMPLED.items()}
    assert scripted.ask("A", parameters=as_text, **all_flags()).token_ids == expected


def test_server_ignores_request_parameters_when_the_json_is_present(scripted: Served) -> None:
    ignored = {"max_tokens": 3, "unknown": "x"}
    asked = scripted.ask("A", sampling={**GREEDY, "max_tokens": 5}, parameters=ignored)
    assert asked.text == "ABCDEF"


@pytest.mark.parametrize("sampling", [None, "", "  ", "{}"])
def test_server_uses_defaults_without_sampling_parameters(
    scripted: Served, sampling: str | None
) -> None:
    triton = request("A", sampling=sampling).triton
    read = scripted.reader.read(copy_request(triton, batched=True, unary=False))
    assert read.params == SamplingParams() and read.params.max_tokens == 16


def test_server_takes_numbers_as_text(scripted: Served) -> None:
    expected = scripted.ask("A", sampling=SAMPLED, **all_flags()).token_ids
    as_text = {name: str(value) for name, value in SAMPLED.items()}
    assert scripted.ask("A", sampling=as_text, **all_flags()).token_ids == expected
