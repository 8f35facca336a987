"""Frames that wait for the road."""

from __future__ import annotations

from p2pgrid.errors import Unreachable
from p2pgrid.proto.frame import HEADER, HEADER_BYTES, Kind, encode_frame


class FrameQueue:
    """Frames in the order in which they leave, capped in number and bytes.

    A full queue means a peer that has stopped reading: `put` raises Unreachable, and the link is over.
    """

    __slots__ = ("_max_bytes", "_max_parts", "_parts", "_pong_at", "n_bytes")

    def __init__(self, max_bytes: int, max_frames: int) -> None:
        self.n_bytes = 0
        self._max_bytes = max_bytes
        self._max_parts = 2 * max_frames
        self._parts: list[bytes] = []
        """Headers and payloads apart: they are joined once, in `take`."""
        self._pong_at = -1

    def put(self, stream_id: int, kind: int, payload: bytes) -> None:
        length = len(payload)
        parts = self._parts
        parts.append(HEADER.pack(length, stream_id, kind))
        if length:
            parts.append(payload)
        self.n_bytes += length + HEADER_BYTES
        if self.n_bytes > self._max_bytes or len(parts) > self._max_parts:
            raise Unreachable(f"the peer reads too slowly: {self.n_bytes} bytes wait for it.")

    def put_pong(self, payload: bytes) -> None:
        """Only the last PING is answered while the road takes nothing, so that a flood of them piles nothing up."""
        pong = encode_frame(0, Kind.PONG, payload)
        if self._pong_at >= 0:
            self._parts[self._pong_at] = pong
        else:
            self._pong_at = len(self._parts)
            self._parts.append(pong)
            self.n_bytes += len(pong)

    def put_last(self, kind: Kind, payload: bytes) -> None:
        """A last word on stream 0: there is room for it whatever waits before it."""
        last = encode_frame(0, kind, payload)
        self._parts.append(last)
        self.n_bytes += len(last)

    def take(self) -> bytes:
        """Everything, to leave in one write."""
        data = b"".join(self._parts)
        self._parts.clear()
        self.n_bytes = 0
        self._pong_at = -1
        return data
