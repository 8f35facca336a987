"""One request of a batch order, as the provider counts it, and how it ends (docs/spec/session.md, section 11)."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.fields import MAX_DURATION_MS
from p2pgrid.proto.messages import RequestLine, Status, Usage
from p2pgrid.proto.metered_order import ending_of
from p2pgrid.proto.sse import EventSplitter

_NOTHING: Final = Usage()


class WaitingEvent(msgspec.Struct, frozen=True, gc=False):
    """An event that waits to leave, and what stands delivered of its request once it has gone."""

    event: bytes
    usage: Usage
    finish_reason: str


class TakenRequest:
    """One request that the provider has taken: what of its answer was counted, what has left, and how it ends."""

    def __init__(self, index: int, key: bytes, body: bytes, n: int, now_ms: int, timeout_ms: int) -> None:
        self.index: Final = index
        self.request_commitment: Final = request_commitment(key, body)
        self.commitment: Final = ResponseCommitment(key)
        self.counter: Final = TokenCounter(n)
        self.splitter: Final = EventSplitter()
        self.arrived_ms: Final = now_ms
        self.deadline_ms: Final = now_ms + timeout_ms
        self.counted = _NOTHING
        """With what waits to leave."""
        self.delivered = _NOTHING
        self.finish_reason = ""
        self.first_token_ms = 0
        self.total_ms = 0
        self.error_status = 0
        self.error_bytes = 0
        self.is_metered = False
        """Some tick counts something of it."""
        self.waiting_bytes = 0
        self.waiting: list[WaitingEvent] = []
        """Events that have yet to leave."""
        self.then: Status | None = None
        """How it ends once they have: nothing more is taken from the engine."""
        self.status: Status | None = None
        """None while it runs."""

    def is_late(self, now_ms: int) -> bool:
        """True if no token has gone out and none may be billed any more."""
        return not self.first_token_ms and now_ms >= self.deadline_ms

    def ending(self) -> Status:
        """How it ends now that the engine has ended its answer and all is out."""
        return ending_of(self.counter, self.error_status)

    def line(self) -> RequestLine:
        """What the receipt says of it."""
        return RequestLine(
            status=self.status or Status.FAILED,
            finish_reason=self.finish_reason,
            usage=self.delivered,
            request_commitment=self.request_commitment,
            response_commitment=self.commitment.digest(),
            first_token_ms=min(self.first_token_ms, MAX_DURATION_MS),
            total_ms=min(self.total_ms, MAX_DURATION_MS),
        )
