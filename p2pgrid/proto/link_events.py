"""What a link's owner sets and hears: its limits, and the events that `Link.receive` yields."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from p2pgrid.proto import frame
from p2pgrid.proto.frame import Terms
from p2pgrid.proto.keys import PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """What this side lets a peer do to it."""

    max_streams: int = 1024
    """Streams that the peer may have open at once."""
    stream_credit_bytes: int = 256 * 1024
    """Credited bytes that may be under way to us on one stream."""
    max_queued_bytes: int = 4 * 1024 * 1024
    max_queued_frames: int = 16_384
    """What may wait for a road that takes no more; beyond it the link is given up."""
    bulk_queue_bytes: int = 256 * 1024
    """Once this much waits, `credit` is 0 for every stream: bulk then waits with its producer."""
    max_resets_per_10_s: int = 2_000
    """Streams that the peer may open and cut: opening costs the peer nothing, and us an order's checks."""
    heartbeat_ms: int = 15_000
    dead_ms: int = 45_000
    handshake_ms: int = 10_000

    def __post_init__(self) -> None:
        if not frame.MIN_STREAM_CREDIT_BYTES <= self.stream_credit_bytes <= frame.MAX_CREDIT_BYTES:
            raise ValueError(f"stream_credit_bytes must be {frame.MIN_STREAM_CREDIT_BYTES} to 2^31 - 1")
        if not 0 < self.heartbeat_ms < self.dead_ms:
            raise ValueError("heartbeat_ms must be positive and below dead_ms")

    @property
    def terms(self) -> Terms:
        """The part of the limits that the peer is told."""
        return Terms(max_streams=self.max_streams, stream_credit_bytes=self.stream_credit_bytes)


class Message(msgspec.Struct, frozen=True, gc=False):
    """A frame of the layer above. For a credited kind, give its bytes back with `consume` when they are used up."""

    stream: int
    kind: int
    payload: bytes


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The peer opened a stream."""

    stream: int


class Writable(msgspec.Struct, frozen=True, gc=False):
    """The peer granted credit on a stream."""

    stream: int


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The peer sends no more on this stream."""

    stream: int


class Cut(msgspec.Struct, frozen=True, gc=False):
    """The peer reset a stream; it is gone."""

    stream: int
    code: int
    text: str


class Proved(msgspec.Struct, frozen=True):
    """To a listener: the dialler has proven this key. Answer with `accept` or `goaway`."""

    peer: PublicKey


class Claimed(msgspec.Struct, frozen=True):
    """To a listener: the dialler has proven this key, and wants the road for a link that the two have.

    Answer with `accept` or `goaway`. `link` is the nonce of that link's own HELLO.
    """

    peer: PublicKey
    link: bytes


class Moved(msgspec.Struct, frozen=True, gc=False):
    """The peer sends nothing more on the road that this came on: what follows comes on the one that was claimed."""


class Ready(msgspec.Struct, frozen=True, gc=False):
    """To a dialler: the listener has accepted; streams may be opened."""


class GoingAway(msgspec.Struct, frozen=True, gc=False):
    """The peer takes no new streams; with a code other than SHUTDOWN it is closing the link."""

    code: int
    text: str


Event = Message | Opened | Writable | Ended | Cut | Proved | Claimed | Moved | Ready | GoingAway
