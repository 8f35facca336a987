"""Server-Sent Events out of a byte stream, without parsing them (WHATWG HTML, section 9.2.6).

An answer travels as the engine wrote it. Whoever counts needs the places where one event ends and the next
begins, and nothing else, so the splitter only looks for blank lines: `b"".join` of what it returns is what came in.
Lines end with LF or CRLF; a lone CR as a line end, which the standard allows and no engine writes, is not
recognised and runs into the cap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from p2pgrid.errors import ProtocolViolation

MAX_EVENT_BYTES: Final = 8 * 2**20
"""Room for the ids of a million-token prompt, which vLLM writes into one event."""

MIN_MEAN_EVENT_BYTES: Final = 64
FREE_EVENTS: Final = 1024
"""Each event costs whoever reads it far more than its bytes. A chunk that brings one token has over 100 in practice;
streams of more than `FREE_EVENTS` events that have under `MIN_MEAN_EVENT_BYTES` on average are no answers."""

MAX_DATA_LINES: Final = 1024
"""Of one event. Engines write one; each costs whoever joins them far more than its bytes."""

DONE: Final = b"[DONE]"
"""The data of the event that ends an OpenAI stream."""

_LF: Final = 0x0A
_DATA: Final = b"data: "
_BLANK_LF: Final = b"\n\n"
_BLANK_CRLF: Final = b"\n\r\n"


class EventSplitter:
    """Cuts bytes, fed in pieces of any size, into whole events.

    Raises ProtocolViolation from `feed` once an event grows past `max_event_bytes`, or events come too small and too
    many; it is unusable afterwards. Where it cuts and when it raises does not hang on how the bytes were fed.
    """

    __slots__ = ("_allowance", "_buffer", "_max_event_bytes", "_scanned")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._max_event_bytes = max_event_bytes
        self._allowance = FREE_EVENTS * MIN_MEAN_EVENT_BYTES

    @property
    def pending_bytes(self) -> int:
        """Bytes of an event whose end has not come. At the end of a sound stream there are none."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, in order, each with the blank line that ends it."""
        if not self._buffer and len(data) <= self._max_event_bytes and _BLANK_CRLF not in data:
            if not 0 <= data.find(_BLANK_LF) == len(data) - 2:
                return self._feed_plain(data)
            self._spend(len(data))
            return [data]  # one whole event: what an engine sends
        self._buffer += data
        events, start = [], 0
        for end in _event_ends(self._buffer, self._scanned):
            self._check(end - start)
            self._spend(end - start)
            events.append(bytes(self._buffer[start:end]))
            start = end
        if start:
            del self._buffer[:start]
        self._check(len(self._buffer))
        # A blank line may have begun in the last two bytes: look at them again, and at nothing else.
        self._scanned = max(0, len(self._buffer) - 2)
        return events

    def takes(self, data: bytes) -> bool:
        """True if `data` is one whole event of one data line, and nothing is pending: it is then taken, as by `feed`.

        What an engine sends a thousand times. Anything else is left for `feed`.
        """
        size = len(data)
        # The first LF is the last but one byte: no other line, and no other end of an event, is in it.
        if data.find(b"\n") != size - 2 or data[-1] != _LF or data[:6] != _DATA or size < 9 or self._buffer:
            return False
        allowance = self._allowance + size - MIN_MEAN_EVENT_BYTES
        if allowance < 0 or size > self._max_event_bytes:
            return False  # `feed` says why
        self._allowance = allowance
        return True

    def _feed_plain(self, data: bytes) -> list[bytes]:
        """Events that end in LF LF, and the beginning of one. They need no search byte by byte."""
        *whole, rest = data.split(_BLANK_LF)
        for event in whole:
            self._spend(len(event) + 2)
        if rest:
            self._buffer += rest
            self._scanned = max(0, len(rest) - 2)
        return [event + _BLANK_LF for event in whole]

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise ProtocolViolation(
                f"an event of the answer's stream has over {self._max_event_bytes} bytes.",
                hint="The sender does not write Server-Sent Events, or fills memory on purpose: drop it.",
            )

    def _spend(self, size: int) -> None:
        self._allowance += size - MIN_MEAN_EVENT_BYTES
        if self._allowance < 0:
            raise ProtocolViolation(
                f"the answer's stream has over {FREE_EVENTS} events of less than {MIN_MEAN_EVENT_BYTES} bytes each.",
                hint="The sender keeps this side busy with nothing: drop it.",
            )


def event_data(event: bytes) -> bytes:
    """The `data` of one event, its lines joined by LF; empty where the event carries none (a comment, a heartbeat).

    Raises ProtocolViolation for an event with over `MAX_DATA_LINES` of them.
    """
    if event.find(b"\n") == len(event) - 2 and event[:6] == _DATA and event[-1] == _LF:
        return event[6:-2]
    if event.count(b"\ndata") >= MAX_DATA_LINES:
        raise ProtocolViolation(
            f"an event of the answer's stream has over {MAX_DATA_LINES} lines of data.",
            hint="The sender keeps this side busy with nothing: drop it.",
        )
    # From one data line to the next, so that lines of no account cost nothing.
    lines, found, at = b"\n" + event + b"\n", [], 0
    while (at := lines.find(b"\ndata", at)) != -1:
        start, end = at + 5, lines.find(b"\n", at + 5)
        rest = lines[start:end].rstrip(b"\r")
        if rest[:1] in (b":", b""):
            found.append(rest[1:].removeprefix(b" "))
        at = end
    return b"\n".join(found)


def _event_ends(buffer: bytes | bytearray, start: int) -> Iterator[int]:
    """The index after each blank line from `start` on, in order.

    Each kind of blank line is looked for from where it was last found, so that no byte is looked at more than twice,
    whichever kind the stream is made of.
    """
    size = len(buffer)
    plain = crlf = -1
    while True:
        if plain < start:
            plain = _found(buffer.find(_BLANK_LF, start), size)
        if crlf < start:
            crlf = _found(buffer.find(_BLANK_CRLF, start), size)
        if plain == crlf:
            return
        start = plain + len(_BLANK_LF) if plain < crlf else crlf + len(_BLANK_CRLF)
        yield start


def _found(index: int, size: int) -> int:
    return index if index >= 0 else size
