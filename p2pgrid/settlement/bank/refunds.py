"""What may be paid back: a credit note, or money that is ahead. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.errors import UsageError
from p2pgrid.settlement.bank.books import Books
from p2pgrid.settlement.bank.stored import Target
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.open_items import AHEAD
from p2pgrid.settlement.paying.plan import reserved
from p2pgrid.units import format_cents


def refundable(books: Books, number: str, cents: int) -> tuple[Side, Target]:
    """The credit note of that number, if so much of it is open and on no way back yet. Raises UsageError."""
    found = [
        (side, item)
        for side in books.sides
        if not side.is_purchase
        for item in side.found.items
        if item.number == number
    ]
    if not found:
        raise UsageError(f"there is no invoice {number!r} that this node issued.", hint="`p2pgrid bank list --open`")
    if len(found) > 1:
        raise UsageError(f"more than one credit note has the number {number!r}.", hint="Pay back by naming the peer.")
    side, item = found[0]
    side.require_euros()
    if item.gross_cents >= 0:
        raise UsageError(
            f"{number} is an invoice, and only a credit note is paid back.",
            hint="Issue a credit note for it first; money that was paid too much is refunded by naming the peer.",
        )
    _require(number, -item.open_cents, _on_its_way(books, side, item.place), cents)
    return side, Target(side.id, item.place)


def refundable_ahead(books: Books, sides: Sequence[Side], cents: int) -> tuple[Side, Target]:
    """The peer's channel on which so much is ahead and on no way back yet. Raises UsageError."""
    free = {side.id: side.found.ahead_cents - _on_its_way(books, side, AHEAD) for side in sides}
    side = max(sides, key=lambda one: (one.is_in_euros, free[one.id]))
    side.require_euros()
    _require(f"what {side.peer_id} paid ahead", side.found.ahead_cents, _on_its_way(books, side, AHEAD), cents)
    return side, Target(side.id, AHEAD)


def _on_its_way(books: Books, side: Side, place: tuple[bytes, str]) -> int:
    return reserved(books.carried).get(side.id, {}).get(place, 0)


def _require(what: str, open_cents: int, on_its_way: int, cents: int) -> None:
    if cents > open_cents - on_its_way:
        besides = f", and {format_cents(on_its_way)} are on their way back already" if on_its_way else ""
        raise UsageError(
            f"{format_cents(cents)} EUR cannot be paid back: of {what} {format_cents(max(open_cents, 0))} EUR are "
            f"open{besides}."
        )
