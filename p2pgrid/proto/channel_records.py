"""What the session core reads of a ledger: one channel's records, as they are durable. Both ledgers provide it.

The core stays free of I/O: a machine that needs what it has just persisted asks for it only after `WhenDurable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pgrid.proto.books import ChannelHead
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.messages import Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import Signed


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order on record."""

    order: Signed[Order]
    voucher: Signed[Voucher] | None
    """The last voucher for it."""


@dataclass(frozen=True, slots=True)
class DisputeRow:
    """A dispute on record with what became of it."""

    dispute: Signed[Dispute]
    answer: Signed[Answer] | None
    mentioned: bool
    """True if a receipt on record mentions the dispute."""
    answer_mentioned: bool
    """True if a receipt on record mentions the answer."""

    @property
    def unmentioned(self) -> tuple[Signed[Dispute] | Signed[Answer], ...]:
        """The dispute and its answer, as far as no receipt mentions them."""
        answer = (self.answer,) if self.answer is not None and not self.answer_mentioned else ()
        return answer if self.mentioned else (self.dispute, *answer)


class ChannelRecords(Protocol):
    """The reads. Records come back with their signatures checked. All raise LedgerError where a ledger is damaged."""

    def head(self, channel: bytes) -> ChannelHead:
        """Where the channel (32-byte id) stands. Raises KeyError for a channel that is not on record."""

    def open_orders(self, channel: bytes) -> list[OpenOrder]:
        """Orders without a receipt and without an outcome, by number."""

    def proposals(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that the client has neither signed nor disputed, by number."""

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None:
        """One order with its last voucher, whatever became of it."""

    def meters(self, channel: bytes, order_number: int, *, after: int = 0) -> Sequence[Signed[Meter]]:
        """An order's meters above a tick, by tick."""

    def vouchers(self, channel: bytes, order_number: int, *, after: int = 0) -> Sequence[Signed[Voucher]]:
        """An order's vouchers above a tick, by tick."""

    def last_meter(self, channel: bytes, order_number: int) -> Signed[Meter] | None:
        """An order's highest meter, or None."""

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None:
        """One receipt with the signatures it has (`signers` tells which), or None."""

    def receipt_for(self, channel: bytes, order_number: int) -> Signed[Receipt] | None:
        """The receipt that bills an order, or None."""

    def offer(self, offer_id: bytes) -> Signed[Offer] | None:
        """One offer by its record id, or None."""

    def disputes(self, channel: bytes) -> list[DisputeRow]:
        """The channel's disputes, by receipt number."""

    def dispute(self, record_id: bytes) -> Signed[Dispute] | Signed[Answer] | None:
        """A dispute or an answer by its record id, or None."""

    def request_key(self, channel: bytes, order_number: int) -> bytes | None:
        """The order's commitment key, or None if it was erased or never came."""
