"""Parameters that change what comes out as text, and outputs of our own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.serving import wire
from tests.serving.harness import GREEDY, Served, all_flags

Serve = Callable[..., Served]


def test_server_includes_the_stop_string_when_asked(scripted: Served) -> None:
    sampling = {**GREEDY, "max_tokens": 20, "stop": ["EF", "ZZ"]}
    assert scripted.ask("A", sampling=sampling).text == "ABCD"
    included = scripted.ask("A", sampling={**sampling, "include_stop_str_in_output": True})
    assert included.text == "ABCDEF"


def test_server_includes_the_stop_token_when_asked(scripted: Served) -> None:
    (token_id,) = scripted.tokenizer.encode("F", add_special_tokens=False)
    sampling = {**GREEDY, "stop_token_ids": [token_id], "include_stop_str_in_output": True}
    assert scripted.ask("A", sampling=sampling).text == "ABCDEF"


def test_server_shows_special_tokens_when_asked(scripted: Served) -> None:
    sampling = {"temperature": 0, "max_tokens": 100, "include_stop_str_in_output": True}
    hidden = scripted.ask("y", sampling=sampling).text
    shown = scripted.ask("y", sampling={**sampling, "skip_special_tokens": False}).text
    assert shown == hidden + "</s>"


def test_server_bans_bad_words_as_the_tokenizer_spells_them(scripted: Served) -> None:
    sampling = {**GREEDY, "max_tokens": 8}
    plain = scripted.ask("A", sampling=sampling).text
    assert plain.startswith("ABCDEF")
    banned = scripted.ask("A", sampling={**sampling, "bad_words": ["EF"]}).text
    assert banned.startswith("ABCDE") and "EF" not in banned
    assert "E" not in scripted.ask("A", sampling={**sampling, "bad_words": ["E"]}).text


def test_server_reports_prompt_logprobs_once(scripted: Served) -> None:
    sampling = {**GREEDY, "max_tokens": 4, "prompt_logprobs": 2}
    for stream in (False, True):
        asked = scripted.ask("XYZ", sampling=sampling, stream=stream, **all_flags())
        first, *later = map(json.loads, asked.values(wire.PROMPT_LOGPROBS))
        assert later == [None] * len(later)
        prompt = scripted.tokenizer.encode("XYZ")
        assert first[0] is None and len(first) == len(prompt)
        for token_id, entry in zip(prompt[1:], first[1:], strict=True):
            own = entry[str(token_id)]
            assert len(entry) in (2, 3) and own["logprob"] <= 0 and own["rank"] >= 1
            assert {1, 2} <= {candidate["rank"] for candidate in entry.values()}
        # The script goes through the alphabet: Y after X, Z after Y.
        assert [first[i][str(prompt[i])]["rank"] for i in (-2, -1)] == [1, 1]
    assert json.loads(scripted.ask("XYZ", sampling=GREEDY, **all_flags()).values(
        wire.PROMPT_LOGPROBS)[0]) is None  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "is_hit"),
    [
        ({}, {}, True),
        ({"tenant": "a"}, {"tenant": "a"}, True),
        ({"tenant": "a"}, {"tenant": "b"}, False),
        ({"tenant": "a"}, {}, False),
        ({"cache": False}, {}, False),
        ({}, {"cache": False}, False),
        ({}, {"prompt_logprobs": 0}, False),
    ],
)
def test_server_tells_what_the_prefix_cache_had(
    serve: Serve,
    scripted_folder: Path,
    first: dict[str, object],
    second: dict[str, object],
    is_hit: bool,
) -> None:
    served = serve(scripted_folder)
    prompt = "ABCDEFGHIJKLMNOP"
    cold, warm = (
        served.ask(prompt, sampling={**GREEDY, **more}, **all_flags()) for more in (first, second)
    )
    assert cold.values(wire.CACHED_TOKENS) == [0]
    (found,) = warm.values(wire.CACHED_TOKENS)
    full = (warm.values(wire.NUM_INPUT_TOKENS)[0] - 1) // 4 * 4
    assert found == (full if is_hit else 0) and full >= 12
    assert warm.text == cold.text


def test_server_takes_no_prefix_cache_when_it_is_off(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, enable_prefix_caching=False)
    for _ in range(2):
        asked = served.ask("ABCDEFGHIJKLMNOP", sampling=GREEDY, **all_flags())
        assert asked.values(wire.CACHED_TOKENS) == [0]
    assert served.engine.scheduler.allocator.num_cached == 0
