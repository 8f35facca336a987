"""Which streams of a link are open, and which ever were (docs/spec/link.md).

The dialler opens odd ids and the listener even ones, each in order; no id is used twice.
"""

from __future__ import annotations

from typing import Final

from p2pgrid.errors import ProtocolViolation, Refused
from p2pgrid.proto.frame import MAX_STREAM_ID, Terms
from p2pgrid.proto.link_events import LinkLimits
from p2pgrid.proto.stream_account import StreamAccount

_RESETS_PERIOD_MS: Final = 10_000


class StreamTable:
    """The open streams of one link by id, and the numbers that both sides count on."""

    def __init__(self, limits: LinkLimits, *, is_dialler: bool, now_ms: int) -> None:
        self.open: Final[dict[int, StreamAccount]] = {}
        self.peer_terms = Terms(max_streams=0, stream_credit_bytes=0)
        """What the peer allows us, once it has said so."""
        self.next_own_id = 1 if is_dialler else 2
        self._next_peer_id = 2 if is_dialler else 1
        self._limits = limits
        self._parity = 1 if is_dialler else 0
        self._own_open = 0
        self._peer_open = 0
        self._resets = 0
        self._resets_since_ms = now_ms

    def open_own(self) -> int:
        """This side opens a stream. Its id. Raises Refused (`busy`) where the peer takes no more at once."""
        if self._own_open >= self.peer_terms.max_streams:
            raise Refused("busy", f"the link has {self._own_open} streams open, as many as the peer takes.")
        stream_id = self.next_own_id
        self.next_own_id += 2
        self._own_open += 1
        self.open[stream_id] = StreamAccount(
            window_bytes=self._limits.stream_credit_bytes, peers_window_bytes=self.peer_terms.stream_credit_bytes
        )
        return stream_id

    def open_peers(self, stream_id: int, *, is_closing: bool) -> bool:
        """The peer opens a stream. False if it uses up the id alone, because this side `is_closing` the link.

        Raises ProtocolViolation for another id than its next, and beyond the streams that it may have open.
        """
        if stream_id != self._next_peer_id or stream_id > MAX_STREAM_ID:
            raise ProtocolViolation(f"the peer opened stream {stream_id}; {self._next_peer_id} was expected.")
        self._next_peer_id += 2
        if is_closing:
            return False
        if self._peer_open >= self._limits.max_streams:
            raise ProtocolViolation(
                f"the peer has more than the {self._limits.max_streams} streams open it was allowed."
            )
        self._peer_open += 1
        self.open[stream_id] = StreamAccount(
            window_bytes=self._limits.stream_credit_bytes, peers_window_bytes=self.peer_terms.stream_credit_bytes
        )
        return True

    def reset_by_peer(self, stream_id: int, now_ms: int) -> None:
        """The peer cuts an open stream. Raises ProtocolViolation where it opens and cuts too many of its own."""
        if stream_id % 2 != self._parity:
            if now_ms - self._resets_since_ms >= _RESETS_PERIOD_MS:
                self._resets, self._resets_since_ms = 0, now_ms
            self._resets += 1
            if self._resets > self._limits.max_resets_per_10_s:
                raise ProtocolViolation(
                    f"the peer opened and reset more than {self._limits.max_resets_per_10_s} streams in 10 s."
                )
        self.drop(stream_id)

    def drop(self, stream_id: int) -> None:
        """An open stream is over."""
        del self.open[stream_id]
        if stream_id % 2 == self._parity:
            self._own_open -= 1
        else:
            self._peer_open -= 1

    def clear(self) -> None:
        """All are over."""
        self.open.clear()
        self._own_open = self._peer_open = 0

    def was_opened(self, stream_id: int) -> bool:
        """True if the stream is open, or was once."""
        return stream_id < (self.next_own_id if stream_id % 2 == self._parity else self._next_peer_id)
