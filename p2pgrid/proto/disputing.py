"""How a party disputes a receipt, and how the other answers (docs/spec/session.md, section 10).

Each side signs its own; what comes from the other is checked against the receipt and the dispute it names, by the rules
that an audit goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pgrid.errors import InvalidRecord, Refused, UsageError
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.dispute_rules import faults_of_answer, faults_of_dispute, is_in_term
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Order, Receipt, Tariff, Voucher
from p2pgrid.proto.receipt_check import receipt_fault
from p2pgrid.proto.record import PARTIES, Record, Role, Signed, parse_message, sign_message, verify_record
from p2pgrid.proto.rules import Fault

BY_ORDER: Final = frozenset({"wrong-amount", "over-caps", "wrong-order"})
"""Reasons that order, offer and receipt alone refute."""
DECIDABLE: Final = BY_ORDER | {"refund-rule", "wrong-count"}
"""Reasons that they refute if a voucher covers the counts."""


def role_in(channel: Channel, key: PublicKey) -> Role:
    """Whether the key sells or buys in the channel. Raises UsageError for a stranger's."""
    if key.raw == channel.provider:
        return Role.PROVIDER
    if key.raw == channel.client:
        return Role.CLIENT
    raise UsageError("this node's key is no party to that channel.", hint="Name the data folder of a node that is.")


def other_role(role: Role) -> Role:
    """The other party of a channel."""
    return Role.CLIENT if role is Role.PROVIDER else Role.PROVIDER


def sign_dispute(
    receipt: Signed[Receipt],
    channel: Channel,
    *,
    reason: str,
    statement: str,
    owed_pico: int,
    key: SecretKey,
    now_ms: int,
) -> Signed[Dispute]:
    """Our dispute of a receipt. Raises Refused (`dispute-late`, `wrong-dispute`): the audit would give it no force."""
    dispute = Dispute(
        channel=channel.channel,
        receipt_number=receipt.message.receipt_number,
        receipt=receipt.id,
        by=role_in(channel, key.public_key),
        reason=reason,
        statement=statement,
        owed_pico=owed_pico,
        disputed_ms=now_ms,
    )
    for fault in faults_of_dispute(dispute, receipt=receipt.message):
        raise Refused(fault.code, fault.sentence, hint="Say with --owed what is owed for the order.")
    if not _is_in_term(dispute, receipt, channel):
        raise Refused("dispute-late", f"the channel lets receipts be disputed for {channel.dispute_days} days.")
    return sign_message(dispute, dispute.by, key)


def sign_answer(
    dispute: Signed[Dispute],
    receipt: Receipt,
    *,
    decision: Decision,
    statement: str,
    owed_pico: int | None,
    key: SecretKey,
    now_ms: int,
) -> Signed[Answer]:
    """Our answer to the other side's dispute. Who rejects it says what is owed: left out, what the receipt says."""
    message = dispute.message
    stated = receipt.amount_pico if owed_pico is None else owed_pico
    answer = Answer(
        channel=message.channel,
        receipt_number=message.receipt_number,
        dispute=dispute.id,
        by=other_role(message.by),
        decision=decision,
        statement=statement,
        owed_pico=message.owed_pico if decision is Decision.ACCEPTED else stated,
        answered_ms=now_ms,
    )
    return sign_message(answer, answer.by, key)


def verify_dispute(record: Record, receipt: Signed[Receipt], channel: Channel, *, now_ms: int) -> Signed[Dispute]:
    """The other side's dispute, or our own come back. Raises InvalidRecord with the finding's code."""
    by = parse_message(record, Dispute).by
    signed = verify_record(record, Dispute, {by: _key_of(channel, by)})
    if signed.message.receipt != receipt.id:
        raise InvalidRecord("wrong-dispute", "the dispute names another record than the receipt with that number.")
    _raise_first(faults_of_dispute(signed.message, receipt=receipt.message))
    _check_not_ahead(signed.message.disputed_ms, now_ms)
    if not _is_in_term(signed.message, receipt, channel):
        raise InvalidRecord("dispute-late", f"the dispute came over {channel.dispute_days} days after the receipt.")
    return signed


def verify_answer(record: Record, dispute: Signed[Dispute], channel: Channel, *, now_ms: int) -> Signed[Answer]:
    """The answer to a dispute. Raises InvalidRecord with the finding's code."""
    by = parse_message(record, Answer).by
    signed = verify_record(record, Answer, {by: _key_of(channel, by)})
    if signed.message.dispute != dispute.id:
        raise InvalidRecord("wrong-answer", "the answer is to another dispute.")
    _raise_first(faults_of_answer(signed.message, dispute=dispute.message))
    _check_not_ahead(signed.message.answered_ms, now_ms)
    return signed


def automatic_rejection(
    dispute: Dispute, receipt: Receipt, order: Signed[Order], tariff: Tariff, voucher: Voucher | None
) -> str:
    """Why the records alone refute a client's dispute, in a sentence; empty where a person has to decide.

    What the client vouched for it cannot take back. Nothing is granted without a person.
    """
    if dispute.by is not Role.CLIENT or dispute.reason not in DECIDABLE:
        return ""
    if receipt_fault(receipt, order, tariff) is not None:
        return ""
    if voucher is not None and voucher.usage.covers(receipt.usage):
        return "The client's voucher covers the counts, and tariff and refund rule give the amount."
    if dispute.reason in BY_ORDER:
        return "The receipt keeps to the order, and tariff and refund rule give the amount for its counts."
    return ""


def _is_in_term(dispute: Dispute, receipt: Signed[Receipt], channel: Channel) -> bool:
    countersigned = set(PARTIES) <= set(receipt.signers)
    return is_in_term(dispute, receipt=receipt.message, countersigned=countersigned, dispute_days=channel.dispute_days)


def _key_of(channel: Channel, role: Role) -> PublicKey:
    return parse_public_key(channel.provider if role is Role.PROVIDER else channel.client)


def _raise_first(faults: Sequence[Fault]) -> None:
    for fault in faults:
        raise InvalidRecord(fault.code, fault.sentence)


def _check_not_ahead(their_ms: int, now_ms: int) -> None:
    if their_ms > now_ms + CLOCK_TOLERANCE_MS:
        raise InvalidRecord("clock-skew", f"the record is dated {(their_ms - now_ms) // 1000} s in the future.")
