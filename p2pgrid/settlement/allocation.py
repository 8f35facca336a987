"""Booking what a channel owes its client on what is open: money ahead and credit notes on invoices.

    before: invoice 20.00 open, credit note -5.00 open       after: invoice 15.00 open, credit note settled
    Payments: reallocated -5.00 on the credit note, reallocated +5.00 on the invoice

No money moves, and the channel's balance stays: of each booking the Payments come to nothing together. Invoices keep
their gross and their VAT. Pure: records in, messages out; the provider signs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from p2pgrid.proto.statement import Payment, PaymentKind
from p2pgrid.settlement.open_items import AHEAD, ChannelItems, Place, cover


def allocate(
    found: ChannelItems, *, reserved: Mapping[Place, int] | None = None, at_ms: int, currency: str
) -> tuple[Payment, ...]:
    """The Payments that book what covers open items on these; none where nothing does.

    `reserved`: so many cents (above zero) of a credit note, or of what is paid ahead, are not used: their refund is
    under way. Where the bank took back more than is left ahead, what had been booked from there on invoices is taken
    back from the latest.
    """
    held = reserved or {}
    open_cents = {
        item.place: item.open_cents + min(held.get(item.place, 0), max(-item.open_cents, 0)) for item in found.items
    }
    ahead = found.ahead_cents - min(held.get(AHEAD, 0), max(found.ahead_cents, 0))
    changes: Counter[Place] = Counter()
    for one in cover(open_cents, ahead):
        changes[one.source] -= one.cents
        changes[one.target] += one.cents
    missing = -(ahead + changes[AHEAD])
    for item in reversed(found.items):
        back = min(max(item.reallocated_cents, 0), max(missing, 0)) if changes[item.place] <= 0 else 0
        changes[item.place] -= back
        changes[AHEAD] += back
        missing -= back
    return tuple(
        move(found.channel, place, cents, at_ms=at_ms, currency=currency)
        for place, cents in sorted(changes.items())
        if cents
    )


def move(channel: bytes, place: Place, cents: int, *, at_ms: int, currency: str, entry: bytes = b"") -> Payment:
    """One side of a booking that moves no money: above zero it comes here, below it leaves."""
    return Payment(
        channel=channel,
        statement=place[0],
        invoice_number=place[1],
        reference="",
        currency=currency,
        amount_cents=cents,
        kind=PaymentKind.REALLOCATED,
        entry=entry,
        booked_ms=at_ms,
    )
