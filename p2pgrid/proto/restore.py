"""A channel's books from what a ledger holds, the same on both sides and after every restart."""

from __future__ import annotations

from collections.abc import Collection

from p2pgrid.errors import LedgerError
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.channel_records import ChannelRecords
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.messages import Channel, ModelOffer, Order, Tariff
from p2pgrid.proto.record import Role, Signed


def restore_books(
    records: ChannelRecords, channel: Signed[Channel], *, both_hold: Collection[bytes] = ()
) -> ChannelBooks:
    """The books as the ledger has them: orders without a receipt are suspended, proposals await their countersignature.

    `both_hold` are ids of disputes and answers known to be on record at the peer too. Raises KeyError for a channel
    that is not on record, LedgerError for a ledger that lacks what its records name.
    """
    channel_id = channel.message.channel
    books = ChannelBooks(channel, records.head(channel_id))
    for one in records.open_orders(channel_id):
        books.open_order(one.order.message, price_of_order(records, one.order.message)[1])
    for proposal in records.proposals(channel_id):
        order = order_of(records, channel_id, proposal.message.order_number)
        books.open_order(order.message, price_of_order(records, order.message)[1])
        books.release(order.message.order_number)
    for row in records.disputes(channel_id):
        dispute = row.dispute.message
        unmentioned = [one.id for one in row.unmentioned]
        books.hold_unmentioned([one for one in unmentioned if one in both_hold], both=True)
        books.hold_unmentioned([one for one in unmentioned if one not in both_hold], both=False)
        if dispute.by is not Role.CLIENT or (row.answer and row.answer.message.decision is Decision.ACCEPTED):
            continue
        receipt = records.receipt(channel_id, dispute.receipt_number)
        if receipt is None or receipt.id != dispute.receipt or Role.CLIENT in receipt.signers:
            continue
        order = order_of(records, channel_id, receipt.message.order_number)
        tariff = price_of_order(records, order.message)[1]
        books.note_disputed(receipt.message, risk_pico(order.message, tariff, books.terms.window_tokens))
    return books


def order_of(records: ChannelRecords, channel: bytes, order_number: int) -> Signed[Order]:
    """An order that must be on record. Raises LedgerError."""
    placed = records.order(channel, order_number)
    if placed is None:
        raise LedgerError(
            f"the ledger lacks order {order_number} of channel {channel.hex()[:16]}, which a receipt of it bills.",
            hint="Restore the ledger from a backup.",
        )
    return placed.order


def price_of_order(records: ChannelRecords, order: Order) -> tuple[ModelOffer, Tariff]:
    """The offer's entry for an order on record, and the tariff at the order's time. Raises LedgerError."""
    offer = records.offer(order.offer)
    entry = offer.message.model_offer(order.model) if offer is not None else None
    if offer is None or entry is None:
        raise LedgerError(
            f"the ledger holds order {order.order_number} of channel {order.channel.hex()[:16]} without its offer.",
            hint="Restore the ledger from a backup.",
        )
    return entry, offer.message.tariff_at(entry, order.ordered_ms)
