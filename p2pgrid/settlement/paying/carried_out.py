"""Which orders the bank has carried out, by the decisions about its entries. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from p2pgrid.settlement.bank.stored import StoredDecision, Target
from p2pgrid.settlement.paying.orders_book import Ordered
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.reference import normalised


@dataclass(kw_only=True)
class Fate:
    """What became of one order, as far as our own bank tells."""

    order: Ordered
    entry: BookedEntry | None = None
    """The entry that carried it out."""
    returned_cents: int = 0
    """What of it came back."""
    return_reason: str = ""

    @property
    def active_cents(self) -> int:
        """What is on its way or has arrived: not withdrawn, and not come back."""
        if self.order.withdrawn_ms is not None and self.entry is None:
            return 0
        return self.order.amount_cents - self.returned_cents


@dataclass
class CarriedOut:
    """Every order's fate, by key, and what was paid without an order."""

    fates: dict[str, Fate]
    outside: Counter[Target] = field(default_factory=Counter)
    """Cents above zero: what the bank shows as paid and nobody ordered here."""


def carried_out(orders: Iterable[Ordered], decided: Iterable[tuple[BookedEntry, StoredDecision]]) -> CarriedOut:
    """Match orders with booked entries: by our id in the bank's file, else by reference and amount, else by what is
    paid and amount; of several that fit, the oldest. What was booked before the day on which it was ordered (a time
    zone aside) was paid without it. A withdrawn order that the bank shows was carried out after all.
    """
    found = CarriedOut({order.key: Fate(order=order) for order in orders})
    by_entry: dict[str, tuple[Fate | None, tuple[Target, ...]]] = {}
    booked = sorted((one for one in decided if one[1].is_booked), key=_order)
    for entry, decision in booked:
        if decision.undoes in by_entry:
            fate, targets = by_entry[decision.undoes]
            if fate is not None:
                fate.returned_cents = min(fate.returned_cents + entry.amount_cents, fate.order.amount_cents)
                fate.return_reason = entry.return_reason
            elif targets:
                for one in decision.bookings:
                    found.outside[one.target] -= one.cents
        elif entry.amount_cents < 0:
            targets = tuple(one.target for one in decision.bookings)
            fate = _fitting(list(found.fates.values()), entry, targets)
            by_entry[entry.key] = fate, targets
            if fate is not None:
                fate.entry = entry
            else:
                found.outside.update({one.target: -one.cents for one in decision.bookings if one.is_purchase})
    return found


def _order(one: tuple[BookedEntry, StoredDecision]) -> tuple[object, ...]:
    entry, decision = one
    return bool(decision.undoes), entry.booking_date, entry.key


def _fitting(fates: Sequence[Fate], entry: BookedEntry, targets: Sequence[Target]) -> Fate | None:
    free = [
        one
        for one in fates
        if one.entry is None
        and one.order.amount_cents == -entry.amount_cents
        and entry.booking_date >= _day_before(one.order.ordered_ms)
    ]
    reference = normalised(entry.end_to_end_id)
    for is_of in (
        lambda order: entry.instruction_id == order.key,
        lambda order: bool(reference) and reference == order.end_to_end_id,
        lambda order: bool(targets) and {share.target for share in order.shares} == set(targets),
    ):
        named = [one for one in free if is_of(one.order)]
        standing = [one for one in named if one.order.withdrawn_ms is None]
        if named:
            return (standing or named)[0]
    return None


def _day_before(time_ms: int) -> date:
    return datetime.fromtimestamp(time_ms // 1000, UTC).date() - timedelta(days=1)
