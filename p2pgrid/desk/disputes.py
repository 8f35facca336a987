"""Disputes by people: signed for a node, found by name, shown with the time that is left to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from p2pgrid.desk.asks import GiveAnswer, MakeDispute
from p2pgrid.desk.find import MIN_PREFIX_CHARS, Receipts, find_receipt
from p2pgrid.errors import UsageError
from p2pgrid.ledger.base import DisputeRow
from p2pgrid.proto.codes import CODES
from p2pgrid.proto.dispute import REASONS, Answer, Decision, Dispute
from p2pgrid.proto.dispute_rules import answer_due_ms, is_unanswered
from p2pgrid.proto.disputing import other_role, sign_answer, sign_dispute
from p2pgrid.proto.keys import PublicKey, SecretKey, parse_public_key
from p2pgrid.proto.messages import Channel, Receipt
from p2pgrid.proto.record import Role, Signed
from p2pgrid.units import format_amount_eur

MOST_STATEMENT_CHARS: Final = 256


class Disputed(Receipts, Protocol):
    """What of a ledger is needed here: any reader has it."""

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]: ...


class AnswerView(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, as it is shown."""

    id: str
    decision: str
    statement: str
    owed_pico: int
    answered_ms: int


class DisputeView(msgspec.Struct, frozen=True, kw_only=True):
    """A dispute, as it is shown."""

    id: str
    channel: str
    receipt_number: int
    receipt: str
    peer: str
    """The other side of the channel."""
    by: str
    """`provider` or `client`."""
    is_ours: bool
    reason: str
    statement: str
    billed_pico: int
    owed_pico: int
    """What the disputing side says is owed for the order."""
    disputed_ms: int
    due_ms: int
    """Until when it is to be answered."""
    is_overdue: bool
    """True if it is not answered, and the time is over."""
    answer: AnswerView | None = None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A dispute or an answer that was signed and is on record."""

    dispute: DisputeView
    is_sent: bool
    """True if the other side has it on record; else it is sent with the next link."""


def make_dispute(ledger: Disputed, keys: Sequence[SecretKey], ask: MakeDispute, now_ms: int) -> Signed[Dispute]:
    """Our dispute of a receipt, signed. Raises UsageError, Refused (`dispute-late`, `wrong-dispute`)."""
    check_reason(ask.reason)
    _check_statement(ask.statement)
    receipt, channel = find_receipt(ledger, ask.receipt)
    role, key = _our_side(channel.message, keys)
    number = receipt.message.receipt_number
    for row in ledger.disputes(channel=channel.message.channel):
        standing = row.dispute.message
        if (standing.receipt_number, standing.by) == (number, role):
            raise UsageError(
                f"receipt {number} is disputed by this node already ({standing.reason}).",
                hint="A receipt can be disputed once by each side; `p2pgrid receipts disputes` shows it.",
            )
    billed = receipt.message.amount_pico
    owed = ask.owed_pico if ask.owed_pico is not None else billed if role is Role.PROVIDER else 0
    if role is Role.CLIENT and owed > billed:
        raise UsageError(
            f"{format_amount_eur(owed)} EUR are more than the {format_amount_eur(billed)} that were billed.",
            hint="Say with --owed what is owed for the order, in EUR.",
        )
    return sign_dispute(
        receipt, channel.message, reason=ask.reason, statement=ask.statement, owed_pico=owed, key=key, now_ms=now_ms
    )


def make_answer(ledger: Disputed, keys: Sequence[SecretKey], ask: GiveAnswer, now_ms: int) -> Signed[Answer]:
    """Our answer to the other side's dispute, signed. Raises UsageError."""
    _check_statement(ask.statement)
    row = find_dispute(ledger, ask.dispute, keys)
    if row.answer is not None:
        raise UsageError(
            f"the dispute was answered already: {row.answer.message.decision}.", hint="An answer cannot be taken back."
        )
    message = row.dispute.message
    receipt = ledger.receipt(message.channel, message.receipt_number)
    channel = _channel_of(ledger, message.channel)
    assert receipt is not None
    _, key = _our_side(channel.message, keys)
    if ask.accept and ask.owed_pico not in (None, message.owed_pico):
        raise UsageError("who accepts a dispute owes what it says.", hint="Leave out --owed, or reject.")
    return sign_answer(
        row.dispute,
        receipt.message,
        decision=Decision.ACCEPTED if ask.accept else Decision.REJECTED,
        statement=ask.statement,
        owed_pico=ask.owed_pico,
        key=key,
        now_ms=now_ms,
    )


def find_dispute(ledger: Disputed, name: str, keys: Sequence[SecretKey]) -> DisputeRow:
    """The other side's dispute of that id, or of the receipt of that name. Raises UsageError."""
    ours = {key.public_key.raw for key in keys}
    channels = {c.message.channel: c.message for c in ledger.channels()}

    def is_theirs(row: DisputeRow) -> bool:
        terms = channels.get(row.dispute.message.channel)
        return terms is not None and _key_of(terms, other_role(row.dispute.message.by)) in ours

    rows = ledger.disputes()
    named = [row for row in rows if len(name) >= MIN_PREFIX_CHARS and row.dispute.id.hex().startswith(name.lower())]
    if len(named) > 1:
        raise UsageError(f"more than one dispute's id begins with {name}.", hint="Give more of it.")
    if not named:
        receipt, _ = find_receipt(ledger, name)
        named = sorted((row for row in rows if row.dispute.message.receipt == receipt.id), key=is_theirs, reverse=True)
        if not named:
            raise UsageError(
                f"nobody disputes receipt {receipt.message.receipt_number}.",
                hint="`p2pgrid receipts disputes` lists what waits for an answer.",
            )
    if not is_theirs(named[0]):
        raise UsageError(
            f"the dispute of receipt {named[0].dispute.message.receipt_number} is not the other side's, which is to "
            "answer it.",
            hint="`p2pgrid receipts disputes` shows until when.",
        )
    return named[0]


def check_reason(reason: str) -> None:
    """Raises UsageError for a word that is neither one of `REASONS` nor a code of the audit."""
    if reason not in REASONS and reason not in CODES:
        raise UsageError(
            f"{reason[:64]!r} is no reason.",
            hint=f"Use {', '.join(REASONS)}, or a code of docs/spec/audit.md such as wrong-amount or wrong-count.",
        )


def disputes_of(ledger: Disputed, ours: Sequence[PublicKey], now_ms: int) -> list[DisputeView]:
    """All disputes of channels that one of our keys is a party of; those that are not answered first, by due time."""
    channels = {c.message.channel: c.message for c in ledger.channels()}
    views = []
    for row in ledger.disputes():
        message = row.dispute.message
        terms, receipt = channels.get(message.channel), ledger.receipt(message.channel, message.receipt_number)
        if terms is not None and receipt is not None:
            views.append(view_of(row, terms, receipt.message, ours, now_ms))
    return sorted(views, key=lambda one: (one.answer is not None, one.due_ms))


def view_of(row: DisputeRow, channel: Channel, receipt: Receipt, ours: Sequence[PublicKey], now_ms: int) -> DisputeView:
    """A dispute as it is shown to one of the channel's parties."""
    message = row.dispute.message
    own = {key.raw for key in ours}
    other = channel.client if channel.provider in own else channel.provider
    days = channel.dispute_days
    return DisputeView(
        id=row.dispute.id.hex(),
        channel=message.channel.hex(),
        receipt_number=message.receipt_number,
        receipt=message.receipt.hex(),
        peer=parse_public_key(other).peer_id,
        by=message.by.value,
        is_ours=_key_of(channel, message.by) in own,
        reason=message.reason,
        statement=message.statement,
        billed_pico=receipt.amount_pico,
        owed_pico=message.owed_pico,
        disputed_ms=message.disputed_ms,
        due_ms=answer_due_ms(message, dispute_days=days),
        is_overdue=row.answer is None and is_unanswered(message, dispute_days=days, now_ms=now_ms),
        answer=_answer_view(row.answer.message, row.answer.id) if row.answer is not None else None,
    )


def _answer_view(answer: Answer, record_id: bytes) -> AnswerView:
    return AnswerView(
        id=record_id.hex(),
        decision=answer.decision.value,
        statement=answer.statement,
        owed_pico=answer.owed_pico,
        answered_ms=answer.answered_ms,
    )


def _our_side(channel: Channel, keys: Sequence[SecretKey]) -> tuple[Role, SecretKey]:
    for key in keys:
        if key.public_key.raw == channel.provider:
            return Role.PROVIDER, key
        if key.public_key.raw == channel.client:
            return Role.CLIENT, key
    raise UsageError("this node's key is no party to that channel.", hint="Name the data folder of a node that is.")


def _key_of(channel: Channel, role: Role) -> bytes:
    return channel.provider if role is Role.PROVIDER else channel.client


def _channel_of(ledger: Disputed, channel: bytes) -> Signed[Channel]:
    return next(c for c in ledger.channels() if c.message.channel == channel)


def _check_statement(statement: str) -> None:
    if len(statement) > MOST_STATEMENT_CHARS:
        raise UsageError(
            f"the statement has {len(statement)} characters; at most {MOST_STATEMENT_CHARS} go into a record."
        )
