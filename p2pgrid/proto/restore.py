"""A channel's books from what a ledger holds, the same on both sides and after every restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.contested import contest_of
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.dispute_rules import is_accepted
from p2pgrid.proto.messages import Channel, Offer, Order, Receipt, Tariff, Voucher
from p2pgrid.proto.record import M, Record, Role, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import taken_off
from p2pgrid.proto.statement import Payment, Statement


class PlacedOrder(Protocol):
    """An order as a ledger gives it back."""

    @property
    def order(self) -> Signed[Order]: ...

    @property
    def voucher(self) -> Signed[Voucher] | None:
        """The last voucher for it."""


class DisputeOnRecord(Protocol):
    """A dispute, and its answer once there is one."""

    @property
    def dispute(self) -> Signed[Dispute]: ...

    @property
    def answer(self) -> Signed[Answer] | None: ...


class SettlementRecords(Protocol):
    """What credit is restored from. Raises LedgerError where a ledger is damaged."""

    def settlement(self, message_type: type[M], channel: bytes) -> Sequence[Signed[M]]:
        """The channel's statements, or its payments, in the order of arrival."""


class ChannelRecords(SettlementRecords, Protocol):
    """What restoring reads of a ledger; both ledgers provide it. All raise LedgerError where a ledger is damaged."""

    def head(self, channel: bytes) -> ChannelHead:
        """Where the channel stands. Raises KeyError for a channel that is not on record."""

    def open_orders(self, channel: bytes) -> Sequence[PlacedOrder]:
        """Orders without a receipt and without an outcome, by number."""

    def proposals(self, channel: bytes) -> Sequence[Signed[Receipt]]:
        """Receipts that the client has not signed, by number; also those that it disputes."""

    def billed_by_voucher(self, channel: bytes) -> Sequence[Signed[Receipt]]:
        """Receipts that bill what a voucher acknowledged, issued within the hour before the channel's latest."""

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None:
        """One receipt with the signatures it has, or None."""

    def order(self, channel: bytes, order_number: int) -> PlacedOrder | None:
        """One order, whatever became of it."""

    def order_records(self, channel: bytes, order_number: int) -> Sequence[Record]:
        """The order, its meters, vouchers and receipt, in the order of arrival."""

    def offer(self, offer_id: bytes) -> Signed[Offer] | None:
        """One offer by its record id, or None."""

    def disputes(self, *, channel: bytes) -> Sequence[DisputeOnRecord]:
        """Disputes with their answers, in the order of arrival."""

    def mentioned(self, channel: bytes, after: int) -> set[bytes]:
        """Ids that receipts of the channel above number `after` mention."""


def restore_books(records: ChannelRecords, channel: Signed[Channel], own: Role) -> ChannelBooks:
    """The books as the ledger has them: orders without a receipt are suspended, proposals await their countersignature.

    Raises KeyError for a channel that is not on record, LedgerError for a ledger that lacks what its records name.
    """
    channel_id = channel.message.channel
    books = ChannelBooks(channel, records.head(channel_id))
    for one in records.open_orders(channel_id):
        books.open_order(one.order.message, tariff_of(records, one.order.message))
    disputes = records.disputes(channel=channel_id)
    by_client = {one.dispute.message.receipt_number: one for one in disputes if one.dispute.message.by is Role.CLIENT}
    for proposal in records.proposals(channel_id):
        order = order_of(records, proposal.message)
        tariff = tariff_of(records, order.message)
        dispute = by_client.get(proposal.message.receipt_number)
        if dispute is None:
            books.open_order(order.message, tariff)
            books.release(order.message.order_number)
        elif not _is_accepted(dispute):
            risk = risk_pico(order.message, tariff, channel.message.window_tokens)
            books.note_disputed(proposal.message, dispute.dispute.message.owed_pico, risk)
    for receipt in records.billed_by_voucher(channel_id):
        if Role.CLIENT in receipt.signers or receipt.message.receipt_number in by_client:
            order = order_of(records, receipt.message)
            books.note_unsigned(receipt.message, order.message, tariff_of(records, order.message))
    if disputes:
        _note_mentionable(records, books, disputes, own)
        for answered in disputes:
            said, answer = answered.dispute.message, answered.answer
            if answer is not None:
                note_credit(books, said, answer.message, records.receipt(channel_id, said.receipt_number))
    restore_credit(records, books)
    return books


def restore_credit(records: SettlementRecords, books: ChannelBooks) -> None:
    """Count all that was stated, paid and set off in the channel, as it is on record; what is counted already stays."""
    books.note_settled(*records.settlement(Statement, books.id), *records.settlement(Payment, books.id))
    set_offs, cycles = records.settlement(SetOff, books.id), records.settlement(Cycle, books.id)
    legs = records.settlement(Leg, books.id) if cycles else ()
    verdicts = records.settlement(CycleVerdict, books.id) if cycles else ()
    for taken in taken_off(books.id, set_offs, cycles, legs, verdicts):
        books.credit.note_set_off(taken)


def note_credit(books: ChannelBooks, dispute: Dispute, answer: Answer, receipt: Signed[Receipt] | None) -> None:
    """A dispute has its answer: if it has force and was accepted, what it takes off the receipt is owed no more.

    `receipt` is the one that it names by its number, None if that is not on record.
    """
    if receipt is None or receipt.id != dispute.receipt:
        return
    contest = contest_of(
        dispute,
        answer,
        receipt=receipt.message,
        receipt_id=receipt.id,
        countersigned=Role.CLIENT in receipt.signers,
        days=books.terms.dispute_days,
    )
    if contest is not None and contest.is_accepted:
        books.credit.note_credit(receipt.message.receipt_number, contest.amount_pico)


def disputed_by_client(records: ChannelRecords, channel: bytes) -> dict[int, Signed[Dispute]]:
    """The client's disputes, by the receipts' numbers."""
    disputes = (one.dispute for one in records.disputes(channel=channel))
    return {one.message.receipt_number: one for one in disputes if one.message.by is Role.CLIENT}


def order_of(records: ChannelRecords, receipt: Receipt) -> Signed[Order]:
    """The order of a receipt on record. Raises LedgerError if the ledger lacks it."""
    placed = records.order(receipt.channel, receipt.order_number)
    if placed is None:
        raise LedgerError(
            f"the ledger lacks order {receipt.order_number} of channel {receipt.channel.hex()[:16]}.",
            hint="Restore the ledger from a backup.",
        )
    return placed.order


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


def _is_accepted(one: DisputeOnRecord) -> bool:
    return one.answer is not None and is_accepted(one.answer.message, one.dispute.message)


def _note_mentionable(
    records: ChannelRecords, books: ChannelBooks, disputes: Sequence[DisputeOnRecord], own: Role
) -> None:
    """What no receipt mentions yet. The provider counts on what the client signed alone: that the client holds."""
    first = min(one.dispute.message.receipt_number for one in disputes)
    mentioned = records.mentioned(books.id, first)
    for one in disputes:
        for held in (one.dispute, one.answer):
            if held is None or held.id in mentioned:
                continue
            if own is Role.CLIENT or held.message.by is Role.CLIENT:
                books.note_held(held.id, held.message)
