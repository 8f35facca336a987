"""Two ledgers' disputes of one channel held side by side (docs/spec/disputes.md, section 3).

Pure, over what a ledger holds. The client says what it holds of a range of receipts (`page_of`); the provider says
what it lacks of that and sends what the client lacks (`compare`); each side checks what comes before it keeps it
(`check_sent`). A range ends where a message would grow too long, and the next exchange begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from p2pgrid.errors import LedgerError, ProtocolViolation, Refused
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.disputing import verify_answer, verify_dispute
from p2pgrid.proto.messages import Channel, Receipt
from p2pgrid.proto.record import Record, Role, Signed, parse_message
from p2pgrid.proto.restore import DisputeOnRecord, note_credit
from p2pgrid.proto.wire.base import MAX_COMPARED, MAX_NUMBER
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, HeldDispute

CONFLICT: Final = "two-records-one-slot: another dispute or answer of the same side's is on record"
MAX_DISPUTE_BYTES: Final = 4096
"""Of a dispute's or an answer's record in wire form."""

_MOST_ABOUT_ONE: Final = 4
"""Disputes and answers about one receipt: one of each for each side."""

Said = Signed[Dispute] | Signed[Answer]


class DisputeRecords(Protocol):
    """What the exchange reads of a ledger; both ledgers provide it. All raise LedgerError where a ledger is damaged."""

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None:
        """One receipt with the signatures it has, or None."""

    def dispute(self, record_id: bytes) -> DisputeOnRecord | None:
        """The dispute with that id, or that to which the answer of that id is."""

    def dispute_ids(self, channel: bytes, *, after: int = 0, limit: int | None = None) -> Sequence[tuple[int, bytes]]:
        """Receipt's number and id of each dispute and answer about receipts above `after`, by number."""

    def mentioned(self, channel: bytes, after: int) -> set[bytes]:
        """Ids that receipts of the channel above number `after` mention."""


def page_of(records: DisputeRecords, channel: bytes, after: int) -> DisputesHeld:
    """What this side holds about the receipts above number `after`, as far as one message goes."""
    until, rows = _rows(records, channel, after)
    held = tuple(HeldDispute(receipt_number=number, id=record_id) for number, record_id in rows)
    return DisputesHeld(channel=channel, after=after, until=until, held=held)


def compare(records: DisputeRecords, theirs: DisputesHeld) -> tuple[DisputesCompared, list[Record]]:
    """The provider's reply to what the client holds, and the records that the client lacks."""
    until, rows = _rows(records, theirs.channel, theirs.after)
    until = min(until, theirs.until)
    own = {record_id for number, record_id in rows if number <= until}
    known = {one.id for one in theirs.held}
    sent = [
        record_of(records, record_id)
        for number, record_id in rows
        if number <= until and record_id not in known and _is_with_client(records, theirs.channel, number)
    ]
    lacks = tuple(one.id for one in theirs.held if one.receipt_number <= until and one.id not in own)
    return DisputesCompared(until=until, lacks=lacks, records=len(sent)), sent


def held_by_both(
    records: DisputeRecords, theirs: DisputesHeld, until: int, sent: Sequence[Record], conflicting: Sequence[Record]
) -> list[bytes]:
    """After an exchange: the ids of a range that the provider holds and the client has listed or been sent.

    Where the client holds another record in a slot, it did not keep ours.
    """
    known = {one.id for one in theirs.held} | {one.id for one in sent}
    apart = {one.receipt_number for one in theirs.held if one.id in {record.id for record in conflicting}}
    # Each side listed or sent at most `MAX_COMPARED` of the range.
    rows = records.dispute_ids(theirs.channel, after=theirs.after, limit=2 * MAX_COMPARED)
    return [i for number, i in rows if number <= until and i in known and number not in apart]


@dataclass(frozen=True, slots=True)
class Checked:
    """What the other side sent."""

    keep: tuple[Said, ...]
    """To be persisted."""
    disputes: tuple[Signed[Dispute], ...]
    """The disputes among them."""
    conflicting: tuple[Record, ...]
    """Sound, and in a slot that another record of the same signer's holds here: evidence."""


def check_sent(sent: Sequence[Record], records: DisputeRecords, channel: Signed[Channel], *, now_ms: int) -> Checked:
    """The other side's records, checked; a dispute comes before its answer. Nothing is kept that an audit would fault.

    Raises InvalidRecord with the finding's code, Refused (`unknown-receipt`), and ProtocolViolation for what is
    neither dispute nor answer of this channel.
    """
    terms = channel.message
    disputes: dict[bytes, Signed[Dispute]] = {}
    checked: list[Said] = []
    for record in sent:
        if len(record.payload) > MAX_DISPUTE_BYTES:
            raise ProtocolViolation(f"a dispute or an answer has at most {MAX_DISPUTE_BYTES} bytes.")
        if record.payload_type == Dispute.payload_type:
            named = parse_message(record, Dispute)
            _check_channel(named.channel, terms)
            receipt = records.receipt(terms.channel, named.receipt_number)
            if receipt is None:
                raise Refused(
                    "unknown-receipt",
                    f"receipt {named.receipt_number} of channel {terms.channel.hex()[:16]} is not on record here.",
                    hint="Resume the channel first.",
                )
            dispute = verify_dispute(record, receipt, terms, now_ms=now_ms)
            disputes[dispute.id] = dispute
            checked.append(dispute)
        elif record.payload_type == Answer.payload_type:
            answer = parse_message(record, Answer)
            _check_channel(answer.channel, terms)
            known = disputes.get(answer.dispute) or _dispute_of(records, answer.dispute)
            if known is None:
                raise ProtocolViolation("an answer came without its dispute.")
            checked.append(verify_answer(record, known, terms, now_ms=now_ms))
        else:
            raise ProtocolViolation(f"a record of type {record.payload_type!r} came where disputes were exchanged.")
    standing = [_standing(records, one.message) for one in checked]
    if len({_slot_of(one.message) for one in checked}) < len(checked):
        raise ProtocolViolation("two records for one slot came at once.")
    barred = {one.id for one, at in zip(checked, standing, strict=True) if at not in (None, one.id)}
    return Checked(
        keep=tuple(one for one in checked if one.id not in barred),
        disputes=tuple(one for one in disputes.values() if one.id not in barred),
        conflicting=tuple(one.record for one in checked if one.id in barred),
    )


def note_held(books: ChannelBooks, records: DisputeRecords, ids: Sequence[bytes]) -> None:
    """Both sides hold these: what no receipt mentions yet the next one may; what is accepted is at risk no more."""
    mentioned = records.mentioned(books.id, 0) if ids else set()
    for record_id in ids:
        if record_id in mentioned:
            continue
        one = records.dispute(record_id)
        if one is None:
            continue
        if one.dispute.id == record_id:
            books.note_held(record_id, one.dispute.message)
        elif one.answer is not None:
            note_answer(books, records, one.dispute.message, one.answer.message)
            books.note_held(record_id, one.answer.message)


def note_answer(books: ChannelBooks, records: DisputeRecords, dispute: Dispute, answer: Answer) -> None:
    """The answer is on record: what is accepted is at risk no more, and off the credit limit."""
    if answer.decision is not Decision.ACCEPTED:
        return
    if dispute.by is Role.CLIENT:
        books.note_accepted(dispute.receipt_number)
    note_credit(books, dispute, answer, records.receipt(books.id, dispute.receipt_number))


def record_of(records: DisputeRecords, record_id: bytes) -> Record:
    """A dispute's or an answer's record. Raises LedgerError if it is not there."""
    one = records.dispute(record_id)
    for signed in (one.dispute, one.answer) if one is not None else ():
        if signed is not None and signed.id == record_id:
            return signed.record
    raise LedgerError("a dispute is gone from the ledger.", hint="Restore the ledger from a backup.")


def _rows(records: DisputeRecords, channel: bytes, after: int) -> tuple[int, Sequence[tuple[int, bytes]]]:
    """Rows about whole receipts, at most `MAX_COMPARED`, and the number up to which they are all."""
    rows = records.dispute_ids(channel, after=after, limit=MAX_COMPARED + 1)
    if len(rows) <= MAX_COMPARED:
        return MAX_NUMBER, rows
    until = rows[MAX_COMPARED][0] - 1
    return until, [row for row in rows if row[0] <= until]


def _slot_of(message: Dispute | Answer) -> tuple[int, Role, bytes]:
    """What only one record fills: a receipt has one dispute of each side, and a dispute one answer."""
    if isinstance(message, Dispute):
        return message.receipt_number, message.by, b""
    return message.receipt_number, message.by, message.dispute


def _standing(records: DisputeRecords, message: Dispute | Answer) -> bytes | None:
    """The id of what fills the slot here, or None."""
    if isinstance(message, Answer):
        known = records.dispute(message.dispute)
        return known.answer.id if known is not None and known.answer is not None else None
    for one in _disputes_of(records, message.channel, message.receipt_number):
        if one.dispute.message.by is message.by:
            return one.dispute.id
    return None


def _disputes_of(records: DisputeRecords, channel: bytes, number: int) -> list[DisputeOnRecord]:
    about = [i for n, i in records.dispute_ids(channel, after=number - 1, limit=_MOST_ABOUT_ONE) if n == number]
    return [one for one in map(records.dispute, about) if one is not None]


def _is_with_client(records: DisputeRecords, channel: bytes, number: int) -> bool:
    """True if the client has the receipt for certain: it has signed or disputed it."""
    receipt = records.receipt(channel, number)
    if receipt is None or Role.CLIENT in receipt.signers:
        return receipt is not None
    return any(one.dispute.message.by is Role.CLIENT for one in _disputes_of(records, channel, number))


def _dispute_of(records: DisputeRecords, record_id: bytes) -> Signed[Dispute] | None:
    known = records.dispute(record_id)
    return known.dispute if known is not None and known.dispute.id == record_id else None


def _check_channel(named: bytes, terms: Channel) -> None:
    if named != terms.channel:
        raise ProtocolViolation("a dispute or an answer of another channel came.")
