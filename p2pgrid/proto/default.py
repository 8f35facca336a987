"""A debt that others can see: a provider's claim that a signed statement is not paid (docs/spec/messages.md, rule 24g).

The debt itself the client has signed: it stands in the statement. What the claim adds is that it is not paid, and that
the provider can be held to: it lists every payment of it that it had booked, and a payment record of its own that is
not in the list proves the claim wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.fields import CurrencyCode, Id, TimeMs
from p2pgrid.proto.record import Message, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import is_in_force
from p2pgrid.proto.statement import MAX_CENTS, Payment, Statement

MAX_LISTED: Final = 256
"""Payments that a claim can list."""


class Default(Message, frozen=True, kw_only=True):
    """So much of a statement was not paid by a day after it was due. Signed by the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/default/1"
    max_payload_bytes: ClassVar[int] = 16 * 1024

    channel: Id
    statement: Id
    """The Statement's record, which both have signed."""
    currency: CurrencyCode
    unpaid_cents: Annotated[int, Meta(ge=1, le=MAX_CENTS)]
    """The statement's closing balance less the payments listed, and less what was set off since; or less than that, by
    what the statement could not know of yet."""
    payments: Annotated[tuple[Id, ...], Meta(max_length=MAX_LISTED)]
    """Every Payment since the statement that was booked by `as_of_ms`, what went back too, by id."""
    as_of_ms: TimeMs
    """Up to when the provider has looked through its bank's statements; later than the statement was due."""
    claimed_ms: TimeMs
    """When it was signed; not before `as_of_ms`."""

    def check(self) -> None:
        if self.claimed_ms < self.as_of_ms:
            raise InvalidRecord("out-of-range", "a claim of default speaks of a time after its own.")
        if list(self.payments) != sorted(set(self.payments)):
            raise InvalidRecord("out-of-range", "a claim lists each payment once, by id.")


def payments_since(statement: Signed[Statement], payments: Iterable[Signed[Payment]]) -> list[Signed[Payment]]:
    """Those of the channel's payments that the statement's closing balance cannot count yet, by id.

    They name the statement, or were booked more than 120 s after it was made.
    """
    stated = statement.message
    since = {
        one.id: one
        for one in payments
        if one.message.channel == stated.channel
        and (one.message.statement == statement.id or one.message.booked_ms > stated.stated_ms + CLOCK_TOLERANCE_MS)
    }
    return [since[record_id] for record_id in sorted(since)]


def set_off_since(statement: Signed[Statement], set_offs: Iterable[Signed[SetOff]]) -> int:
    """What set-offs in force take off the statement's channel, and its closing balance cannot count yet, in cents.

    They name the statement, or were proposed more than 120 s after it was made.
    """
    stated = statement.message
    cents = 0
    for one in {one.id: one.message for one in set_offs if is_in_force(one)}.values():
        side = one.side_of(stated.channel)
        is_since = one.agreed_ms > stated.stated_ms + CLOCK_TOLERANCE_MS
        if side is not None and (is_since or any(claim.statement == statement.id for claim in side.claims)):
            cents += one.amount_cents
    return cents


def open_by_all(
    statement: Signed[Statement],
    statements: Iterable[Signed[Statement]],
    payments: Iterable[Signed[Payment]],
    set_off_cents: int,
) -> int | None:
    """What is open of a statement and all before it by everything that was paid in the channel; None if one is missing.

    A bank tells late: what was booked before the statement was made may not be in it, nor name it. `set_off_cents`: all
    that was set off in the channel.
    """
    by_id = {one.id: one.message for one in statements}
    at, gross_cents, counted_cents = statement.message, 0, 0
    while True:
        gross_cents += at.gross_cents
        counted_cents += at.set_off_cents
        if at.statement_number == 1:
            break
        before = by_id.get(at.previous)
        if before is None or before.statement_number != at.statement_number - 1:
            return None
        at = before
    paid = {one.id: one.message for one in payments if one.message.channel == at.channel}
    paid_cents = sum(one.amount_cents for one in paid.values())
    return at.opening_cents + gross_cents - paid_cents - max(set_off_cents, counted_cents)


def make_default(
    statement: Signed[Statement],
    payments: Iterable[Signed[Payment]],
    set_offs: Iterable[Signed[SetOff]] = (),
    *,
    statements: Iterable[Signed[Statement]] = (),
    set_off_cents: int = 0,
    as_of_ms: int,
    now_ms: int,
) -> Default | None:
    """The claim that a statement is not paid, or None where nothing of it is open.

    `payments`, `set_offs`, `statements`: all of the channel. `set_off_cents`: all that set-offs and cycles took off in
    the channel.
    """
    booked = [one for one in payments if one.message.booked_ms <= as_of_ms]
    listed = payments_since(statement, booked)
    paid_cents = sum(one.message.amount_cents for one in listed) + set_off_since(statement, set_offs)
    unpaid_cents = statement.message.closing_cents - paid_cents
    by_all = open_by_all(statement, statements, booked, set_off_cents)
    if by_all is not None:
        unpaid_cents = min(unpaid_cents, by_all)
    if unpaid_cents <= 0:
        return None
    return Default(
        channel=statement.message.channel,
        statement=statement.id,
        currency=statement.message.currency,
        unpaid_cents=unpaid_cents,
        payments=tuple(one.id for one in listed),
        as_of_ms=as_of_ms,
        claimed_ms=now_ms,
    )
