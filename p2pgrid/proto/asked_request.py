"""One request of a batch order, as the client counts it (docs/spec/session.md, section 11)."""

from __future__ import annotations

from typing import Final

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.batch import counts
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.commitment import ResponseCommitment, request_commitment
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import Order, RequestLine, Status, Tariff, Usage
from p2pgrid.proto.pricing import owes_nothing, price_of, usage_of
from p2pgrid.proto.receipt_check import Fault, answer_fault, contradiction_fault
from p2pgrid.proto.record import Signed
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.orders import MAX_ENGINE_ERROR_BYTES, Head


class AskedRequest:
    """One request of ours, as the program's answer sees it."""

    def __init__(
        self, books: ChannelBooks, order: Signed[Order], tariff: Tariff, index: int, key: bytes, body: bytes, n: int
    ) -> None:
        self.index: Final = index
        self.books: Final = books
        self.order: Final = order
        self.counter: Final = TokenCounter(n)
        self.head: Head | None = None
        self.refusal: Refusal | None = None
        self.ended: Status | None = None
        """The provider's word that it is over, other than `completed`."""
        self.request_commitment: Final = request_commitment(key, body)
        self._tariff: Final = tariff
        self._commitment = ResponseCommitment(key)
        self._splitter = EventSplitter()
        self._error_bytes = 0
        self.is_cancelled = False

    @property
    def usage(self) -> Usage:
        """Our own count of what has been delivered."""
        return usage_of(self.counter)

    @property
    def counts(self) -> bool:
        """True if it is in the order's counts."""
        return self.refusal is None and counts(self.ended, self.usage)

    @property
    def is_answered(self) -> bool:
        """True if our own count says that it is owed for."""
        counter = self.counter
        return (counter.done or self.is_cancelled) and not counter.has_failed and not counter.contradiction

    def cost_pico(self) -> int:
        """What is owed for it, by our own count."""
        return price_of(self._tariff, self.usage) if self.counts else 0

    def digest(self) -> bytes:
        """The commitment to its answer so far."""
        return self._commitment.digest()

    def take_in(self, data: bytes) -> None:
        """Bytes of its answer came. Raises ProtocolViolation."""
        if self.head is None or self.refusal is not None or self.ended is not None:
            raise ProtocolViolation(f"the provider sent an answer to request {self.index} where none may come.")
        if self.head.status == 200:
            self._commitment.update(data)
            for event in self._splitter.feed(data):
                self.counter.feed(event)
            return
        self._error_bytes += len(data)
        if self._error_bytes > MAX_ENGINE_ERROR_BYTES:
            raise ProtocolViolation(f"the provider sent an error of over {MAX_ENGINE_ERROR_BYTES} bytes.")

    def fault_of(self, line: RequestLine) -> Fault | None:
        """What is wrong with the receipt's line about it."""
        what, own = f"of request {self.index} ", self.ended or Status.COMPLETED
        fault = answer_fault(line, self.counter, self.digest(), is_cancelled=self.is_cancelled, what=what)
        if fault is not None:
            return fault
        if line.status is not own and (self.ended or not owes_nothing(line.status)):
            return "wrong-status", f"{what}the receipt says {line.status}; it was told otherwise before."
        return contradiction_fault(line, self.counter, what)
