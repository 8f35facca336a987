"""One stream's account: its credit in both directions, and which direction has ended."""

from __future__ import annotations

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.frame import MAX_PAYLOAD_BYTES


class StreamAccount:
    """Credit is counted in payload bytes of credited frames.

    receivable + held + consumed is always the window that we gave the peer.
    """

    __slots__ = (
        "consumed",
        "held",
        "own_ended",
        "peer_ended",
        "peers_window_bytes",
        "receivable",
        "sendable",
        "window_bytes",
    )

    def __init__(self, *, window_bytes: int, peers_window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.peers_window_bytes = peers_window_bytes
        self.sendable = peers_window_bytes
        """What we may still send."""
        self.receivable = window_bytes
        """What the peer may still send."""
        self.held = 0
        """Received and not yet consumed by our owner."""
        self.consumed = 0
        """Consumed and not yet granted again."""
        self.own_ended = False
        self.peer_ended = False

    def received(self, n_bytes: int) -> None:
        """A credited frame came. ProtocolViolation beyond the credit, and for an empty one, which would be free."""
        if not 0 < n_bytes <= self.receivable:
            raise ProtocolViolation(f"{n_bytes} credited bytes on a stream; 1 to {self.receivable} were expected.")
        self.receivable -= n_bytes
        self.held += n_bytes

    def sent(self, n_bytes: int) -> None:
        """A credited frame leaves. ValueError beyond the credit."""
        if not 0 < n_bytes <= self.sendable:
            raise ValueError(f"{n_bytes} credited bytes on a stream that has {self.sendable} left")
        self.sendable -= n_bytes

    def granted(self, n_bytes: int) -> None:
        """A CREDIT came. ProtocolViolation if it returns more than was taken."""
        if self.sendable + n_bytes > self.peers_window_bytes:
            raise ProtocolViolation(f"a CREDIT of {n_bytes} bytes is more than was ever used.")
        self.sendable += n_bytes

    def consume(self, n_bytes: int) -> int:
        """Our owner has used bytes up. Returns what to grant the peer now: half a window or more, or 0."""
        if not 0 <= n_bytes <= self.held:
            raise ValueError(f"{n_bytes} bytes consumed on a stream, of {self.held} held")
        self.held -= n_bytes
        self.consumed += n_bytes
        if 2 * self.consumed < self.window_bytes or self.peer_ended:
            return 0
        grant, self.consumed = self.consumed, 0
        self.receivable += grant
        return grant

    def check_may_send(self, n_bytes: int) -> None:
        """ValueError for a frame after END or over the cap."""
        if self.own_ended or n_bytes > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a frame of {n_bytes} bytes (END sent: {self.own_ended})")
