"""Server-Sent Events out of a byte stream, without parsing them (WHATWG HTML, section 9.2.6).

An answer travels as the engine wrote it. Whoever counts needs the places where one event ends and the next
begins, and nothing else, so the splitter only looks for blank lines: `b"".join` of what it returns is what came in.
Lines end with LF or CRLF; a lone CR as a line end, which the standard allows and no engine writes, is not
recognised and runs into the cap.
"""

from __future__ import annotations

from typing import Final

from p2pgrid.errors import ProtocolViolation

MAX_EVENT_BYTES: Final = 8 * 2**20
"""Room for the ids of a million-token prompt, which vLLM writes into one event."""

DONE: Final = b"[DONE]"
"""The data of the event that ends an OpenAI stream."""

_BLANK_LF: Final = b"\n\n"
_BLANK_CRLF: Final = b"\n\r\n"


class EventSplitter:
    """Cuts bytes, fed in pieces of any size, into whole events.

    Raises ProtocolViolation from `feed` once an event grows past `max_event_bytes`; it is unusable afterwards.
    """

    __slots__ = ("_buffer", "_max_event_bytes", "_scanned")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._max_event_bytes = max_event_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes of an event whose end has not come. At the end of a sound stream there are none."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, in order, each with the blank line that ends it."""
        if not self._buffer and data.endswith(_BLANK_LF) and len(data) <= self._max_event_bytes:
            # What an engine in step sends: whole events and nothing over. One event needs no copy at all.
            end = _event_end(data, 0)
            if end == len(data):
                return [data]
        self._buffer += data
        buffer, events, start = self._buffer, [], 0
        while (end := _event_end(buffer, max(start, self._scanned))) != -1:
            self._check(end - start)
            events.append(bytes(buffer[start:end]))
            start = end
        if start:
            del buffer[:start]
        self._check(len(buffer))
        # A blank line may have begun in the last two bytes: look at them again, and at nothing else.
        self._scanned = max(0, len(buffer) - 2)
        return events

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise ProtocolViolation(
                f"an event of the answer's stream has over {self._max_event_bytes} bytes.",
                hint="The sender does not write Server-Sent Events, or fills memory on purpose: drop it.",
            )


def event_data(event: bytes) -> bytes:
    """The `data` of one event, its lines joined by LF; empty where the event carries none (a comment, a heartbeat)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and event.endswith(_BLANK_LF):
        return event[6:-2]
    found = []
    for line in event.split(b"\n"):
        name, colon, value = line.rstrip(b"\r").partition(b":")
        if name == b"data" and (colon or not value):
            found.append(value.removeprefix(b" "))
    return b"\n".join(found)


def _event_end(buffer: bytes | bytearray, start: int) -> int:
    """The index after the first blank line at or after `start`, or -1."""
    plain = buffer.find(_BLANK_LF, start)
    # Only a CRLF blank line that ends before the other one does: where to cut must not hang on how bytes were fed.
    crlf = buffer.find(_BLANK_CRLF, start, None if plain == -1 else plain + 1)
    if crlf != -1:
        return crlf + len(_BLANK_CRLF)
    return plain + len(_BLANK_LF) if plain != -1 else -1
