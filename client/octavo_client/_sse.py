"""Server-sent events, as section 9.2 of the HTML standard parses and interprets them.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Its data may have several lines."""

    type: str
    data: str


class EventParser:
    """Bytes in pieces of any size go in, events come out as soon as they are whole.

    An event that the stream's end cuts off is never given out. `id` and `retry` fields are read
    over: they are for clients that connect again, which a generation does not allow.
    """

    def __init__(self) -> None:
        # Drops one byte order mark; what is no UTF-8 becomes U+FFFD.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_carriage_return = False
        self._line = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        text = self._decoder.decode(piece)
        if text and self._after_carriage_return:
            # That return has ended its line already; this is the second half of the line end.
            text = text.removeprefix("\n")
            self._after_carriage_return = False
        if text.endswith("\r"):
            self._after_carriage_return = True
        *lines, self._line = _LINE_END.split(self._line + text)
        return [event for line in lines if (event := self._take(line))]

    def _take(self, line: str) -> Event | None:
        """One line without its end; the event if it is the empty line that dispatches one."""
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        # A comment is a line whose field name is empty.
        if field == "event":
            self._type = value
        elif field == "data":
            self._data.append(value)
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._type or "message", "\n".join(self._data)) if self._data else None
        self._type, self._data = "", []
        return event
