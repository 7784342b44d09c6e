"""The event stream parser, against the words of the standard."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_client._sse import Event, EventParser

BOM = b"\xef\xbb\xbf"


def parse(*pieces: bytes) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def message(data: str) -> Event:
    return Event("message", data)


# The first three are the standard's own examples.
CASES: dict[str, tuple[bytes, list[Event]]] = {
    "lines of data are joined": (
        b"data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")]
    ),
    "a comment, an id, no id, a space that counts": (
        b": test\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
        [message("first"), message("second"), message(" third")],
    ),
    "fields without a colon, and an end that cuts off": (
        b"data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]
    ),
    "the space is optional": (b"data:test\n\ndata: test\n\n", [message("test")] * 2),
    "an event's type": (
        b"event: add\ndata: 1\n\ndata: 2\n\n", [Event("add", "1"), message("2")]
    ),
    "a type without data is forgotten": (b"event: add\n\ndata: 1\n\n", [message("1")]),
    "the last type counts": (b"event: a\nevent: b\ndata: 1\n\n", [Event("b", "1")]),
    "an empty type is the usual one": (b"event: a\nevent:\ndata: 1\n\n", [message("1")]),
    "carriage returns": (b"data: a\r\rdata: b\rdata: c\r\r", [message("a"), message("b\nc")]),
    "both": (b"data: a\r\n\r\ndata: b\r\ndata: c\r\n\r\n", [message("a"), message("b\nc")]),
    "mixed": (b"data: a\n\rdata: b\r\n\ndata: c\r\n\r", [message(d) for d in "abc"]),
    "a byte order mark": (BOM + b"data: a\n\n", [message("a")]),
    "only one byte order mark": (BOM + BOM + b"data: a\n\ndata: b\n\n", [message("b")]),
    "a mark inside is a character": (b"data: a\n\n" + BOM + b"data: b\n\n", [message("a")]),
    "colons in the value": (b"data: {\"a\": 1}\n\n", [message('{"a": 1}')]),
    "a tab is no space": (b"data:\ta\n\n", [message("\ta")]),
    "a field's name is exact": (b" data: a\nData: b\ndata : c\n\n", []),
    "unknown fields": (b"foo: bar\nretry: 10\nfoo\ndata: a\n\n", [message("a")]),
    "only these end lines": (
        "data: a\u2028b\u0085c\x0bd\x0c\n\n".encode(), [message("a\u2028b\u0085c\x0bd\x0c")]
    ),
    "bytes that are no UTF-8": (b"data: \xff\xc3\n\n", [message("\ufffd\ufffd")]),
    "nothing": (b"", []),
    "empty lines": (b"\n\n\r\n\r", []),
    "a last event without its empty line": (b"data: a\n\ndata: b\n", [message("a")]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_stream_gives_its_events(case: str) -> None:
    stream, events = CASES[case]

    assert parse(stream) == events


@pytest.mark.parametrize("case", CASES)
def test_one_byte_at_a_time(case: str) -> None:
    stream, events = CASES[case]

    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == events


def test_event_comes_with_the_byte_that_completes_it() -> None:
    parser = EventParser()

    assert parser.feed(b"data: a\r\n") == []
    assert parser.feed(b"\r") == [message("a")]
    assert parser.feed(b"\ndata: b\n\n") == [message("b")]


FRAGMENTS = [
    b"data", b"event", b"id", b"retry", b":", b" ", b"\r", b"\n", b"\r\n", b"\n\n", BOM, b"a",
    b"data: x\n", "é".encode(), "🦙".encode(), "\u2028".encode(), b"\xf0\x9f", b"\xff", b"\0",
]  # fmt: skip
streams = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(b"".join)


@given(streams, st.data())
def test_any_split_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    bounds = [0, *cuts, len(stream)]

    pieces = [stream[i:j] for i, j in itertools.pairwise(bounds)]

    assert parse(*pieces) == parse(stream)


@given(streams)
def test_whole_stream_is_read_as_the_standard_says(stream: bytes) -> None:
    assert parse(stream) == interpret(stream)


def interpret(stream: bytes) -> list[Event]:
    """The standard's steps, one after another, for a stream that is all there."""
    text = stream.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    events, data, kind = [], "", ""
    for line in text.split("\n")[:-1]:
        if line == "":
            if data != "":
                events.append(Event(kind if kind else "message", data[:-1]))
            data, kind = "", ""
            continue
        if line[0] == ":":
            continue
        at = line.find(":")
        field, value = (line, "") if at < 0 else (line[:at], line[at + 1 :])
        if value[:1] == " ":
            value = value[1:]
        if field == "event":
            kind = value
        elif field == "data":
            data += value + "\n"
    return events
