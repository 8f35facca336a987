"""A channel's books from what a ledger holds, the same on both sides and after every restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.messages import Channel, Offer, Order, Receipt, Tariff
from p2pgrid.proto.record import Signed


class PlacedOrder(Protocol):
    """An order as a ledger gives it back."""

    @property
    def order(self) -> Signed[Order]: ...


class ChannelRecords(Protocol):
    """What restoring reads of a ledger; both ledgers provide it. All raise LedgerError where a ledger is damaged."""

    def head(self, channel: bytes) -> ChannelHead:
        """Where the channel stands. Raises KeyError for a channel that is not on record."""

    def open_orders(self, channel: bytes) -> Sequence[PlacedOrder]:
        """Orders without a receipt and without an outcome, by number."""

    def proposals(self, channel: bytes) -> Sequence[Signed[Receipt]]:
        """Receipts that the client has not signed, by number."""

    def order(self, channel: bytes, order_number: int) -> PlacedOrder | None:
        """One order, whatever became of it."""

    def offer(self, offer_id: bytes) -> Signed[Offer] | None:
        """One offer by its record id, or None."""


def restore_books(records: ChannelRecords, channel: Signed[Channel]) -> ChannelBooks:
    """The books as the ledger has them: orders without a receipt are suspended, proposals await their countersignature.

    Raises KeyError for a channel that is not on record, LedgerError for a ledger that lacks what its records name.
    """
    channel_id = channel.message.channel
    books = ChannelBooks(channel, records.head(channel_id))
    for one in records.open_orders(channel_id):
        books.open_order(one.order.message, tariff_of(records, one.order.message))
    for proposal in records.proposals(channel_id):
        placed = records.order(channel_id, proposal.message.order_number)
        if placed is None:
            raise LedgerError(
                f"the ledger lacks order {proposal.message.order_number} of channel {channel_id.hex()[:16]}.",
                hint="Restore the ledger from a backup.",
            )
        books.open_order(placed.order.message, tariff_of(records, placed.order.message))
        books.release(placed.order.message.order_number)
    return books


def tariff_of(records: ChannelRecords, order: Order) -> Tariff:
    """What an order on record costs. Raises LedgerError if the ledger lacks its offer."""
    offer = records.offer(order.offer)
    entry = offer.message.model_offer(order.model) if offer is not None else None
    if offer is None or entry is None:
        raise LedgerError(
            f"the ledger holds order {order.order_number} of channel {order.channel.hex()[:16]} without its offer.",
            hint="Restore the ledger from a backup.",
        )
    return offer.message.tariff_at(entry, order.ordered_ms)
