"""Stop strings against a search of the whole text after each piece."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.serving.detokenizer import StopStrings

PIECES = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple)


def expected(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    """(what may be shown, whether a stop string ended it)."""
    text = ""
    for piece in pieces:
        text += piece
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], True
    return text, False


@given(pieces=PIECES, stops=STOPS)
def test_stop_strings_equal_a_search_of_the_whole_text(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    filtered = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += filtered.push(piece)
        # What is shown can be taken back no more, so it must be right at any time.
        assert expected(pieces, stops)[0].startswith(shown)
    shown += filtered.flush()
    assert (shown, filtered.matched) == expected(pieces, stops)


@given(pieces=PIECES, stops=STOPS)
def test_stop_strings_hold_back_only_what_may_become_one(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    filtered = StopStrings(stops)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += filtered.push(piece)
        if not filtered.matched:
            held = text[len(shown) :]
            assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["a", "b"], (), ["a", "b", ""]),
        (["<en", "d>"], ("<end>",), ["", "", ""]),
        (["x<e", "n", "x"], ("<end>",), ["x", "", "<enx", ""]),
        (["aa", "ab"], ("aab",), ["", "a", ""]),
        (["abab", "ac"], ("ababac",), ["", "", ""]),
        (["12", "34"], ("3", "23"), ["1", "", ""]),
        (["wait", "\n\n", "no"], ("\n\n", "no"), ["wait", "", "", ""]),
        (["tail en"], ("end",), ["tail ", "en"]),
    ],
)
def test_stop_strings_show(pieces: list[str], stops: tuple[str, ...], shown: list[str]) -> None:
    filtered = StopStrings(stops)
    assert [*(filtered.push(piece) for piece in pieces), filtered.flush()] == shown
