"""Stop strings from text to text: what is shown, what is counted, what is given back."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.serving import wire
from tests.serving.checkpoints import SCRIPT
from tests.serving.harness import GREEDY, Served, StepGate, all_flags, request, wait_until

Serve = Callable[..., Served]

BEFORE_EMOJI = SCRIPT.split("😀")[0]

# (stop strings, max_tokens, what is shown, output tokens, finish reason); one byte is one token.
STOPPED = {
    "spanning tokens": (["DEF"], 60, "BC", 5, "stop"),
    "a single token": (["D"], 60, "BC", 3, "stop"),
    "the first token": (["B"], 60, "", 1, "stop"),
    "the first tokens": (["BCD"], 60, "", 3, "stop"),
    "the last token": (["DEF"], 5, "BC", 5, "stop"),
    "a text instead of a list": ("DEF", 60, "BC", 5, "stop"),
    "the earliest of several": (["XYZ", "GHI", "JK"], 60, "BCDEF", 8, "stop"),
    "overlapping candidates": (["EFGX", "FGH"], 60, "BCDE", 7, "stop"),
    "one the beginning of the other": (["HIJK", "HI"], 60, "BCDEFG", 8, "stop"),
    "one within the other": (["EFGHI", "FG"], 60, "BCDE", 6, "stop"),
    "a character of four tokens": (["😀"], 100, BEFORE_EMOJI, len(BEFORE_EMOJI) + 4, "stop"),
    "across such a character": (["{😀|"], 100, BEFORE_EMOJI[:-1], len(BEFORE_EMOJI) + 5, "stop"),
    "held back and released at the end": (["XYZ!"], 25, SCRIPT[:25], 25, "length"),
    "held back when the model ends": (["}~!"], 100, SCRIPT, len(SCRIPT.encode()) + 1, "stop"),
    "held back with half a character": (
        ["{\ufffd!"], len(BEFORE_EMOJI) + 2, f"{BEFORE_EMOJI}\ufffd", len(BEFORE_EMOJI) + 2,
        "length",
    ),
    "never": (["xyzz", "0"], 30, SCRIPT[:30], 30, "length"),
    "sixteen of them": ([f"M{i}" for i in range(15)] + ["MN"], 60, "BCDEFGHIJKL", 13, "stop"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", STOPPED)
def test_server_stops(scripted: Served, name: str, stream: bool) -> None:
    stops, max_tokens, text, num_tokens, reason = STOPPED[name]
    sampling = {"temperature": 0, "max_tokens": max_tokens, "stop": stops}
    flags = {**all_flags(), "stream": stream, "exclude_input_in_output": True}
    asked = scripted.ask("A", sampling=sampling, **flags)
    assert asked.text == text
    assert asked.values(wire.FINISH_REASON)[-1] == reason
    assert sum(asked.values(wire.NUM_OUTPUT_TOKENS)) == num_tokens
    assert len(asked.token_ids) == num_tokens


def test_server_finds_no_stop_string_in_the_prompt(scripted: Served) -> None:
    asked = scripted.ask("DEF A", sampling={**GREEDY, "stop": ["A", "DEF", "GH"]})
    assert asked.text == "DEF ABC"


def test_server_gives_blocks_back_soon_after_a_stop_string(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder)
    gate = StepGate(served)
    asked = request("A", stream=True, sampling={**GREEDY, "max_tokens": 200, "stop": "DEF"})
    served.execute(asked)
    for _ in range(5):
        gate.wait()
        gate.let_through()
    asked.wait()
    assert asked.text == "BC"
    gate.open()
    wait_until(lambda: served.num_used_blocks == 0)
    # At most the step that had begun when the string was found.
    assert served.engine.stats.generation_tokens <= 6
    assert served.stats.finished == {"stop": 1}


def test_server_ends_at_the_stop_string_when_the_engine_is_ahead(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, sender_threads=1)
    asked = request(
        "A", stream=True, sampling={**GREEDY, "max_tokens": 50, "stop": "RST"}, **all_flags()
    )
    # The first send lasts until the engine has made all of its tokens.
    done = threading.Event()
    asked.sender.on_send = lambda: done.wait() and None
    served.execute(asked)
    wait_until(lambda: served.engine.stats.generation_tokens == 50)
    done.set()
    first, *others = asked.wait().values(wire.TEXT_OUTPUT)
    assert len(others) == 1 and first + others[0] == "BCDEFGHIJKLMNOPQ"
    assert sum(asked.values(wire.NUM_OUTPUT_TOKENS)) == 19
    assert asked.values(wire.FINISH_REASON) == ["None", "stop"]


def test_server_stops_at_a_stop_token_without_its_text(scripted: Served) -> None:
    (token_id,) = scripted.tokenizer.encode("F", add_special_tokens=False)
    sampling = {**GREEDY, "stop_token_ids": [token_id]}
    asked = scripted.ask("A", sampling=sampling, exclude_input_in_output=True, **all_flags())
    assert asked.text == "BCDE"
    assert asked.token_ids[-1] == token_id and len(asked.token_ids) == 5
    assert asked.values(wire.FINISH_REASON) == ["stop"]


def test_server_does_not_stop_before_min_tokens(scripted: Served) -> None:
    ends = scripted.ask("w", sampling={"temperature": 0}, **all_flags())
    assert ends.text == "wxyz{😀|}~" and ends.values(wire.FINISH_REASON) == ["stop"]
    goes_on = scripted.ask("w", sampling={"temperature": 0, "min_tokens": 16}, **all_flags())
    assert len(goes_on.token_ids) == 16 and goes_on.values(wire.FINISH_REASON) == ["length"]
