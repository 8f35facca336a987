"""Set-off between two who owe one another (docs/settlement/payments.md, "Set-off").

Invoices stay gross, each with its own VAT; what is set off is the payment. The largest sum that both owe is taken off
both sides, from the oldest debts on, and who owes more pays the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from p2pgrid.errors import UsageError
from p2pgrid.units import format_cents


@dataclass(frozen=True, kw_only=True)
class Debt:
    """What is open of one invoice. A credit note is a debt the other way."""

    number: str
    """The invoice's, unique for its creditor."""
    debtor: str
    creditor: str
    open_cents: int
    """Above zero, VAT included."""
    due: date
    currency: str = "EUR"

    def __post_init__(self) -> None:
        if self.open_cents <= 0:
            raise UsageError(
                f"{format_cents(self.open_cents)} of {self.number} cannot be set off.",
                hint="A credit note is a debt of the one who wrote it.",
            )
        if self.debtor == self.creditor:
            raise UsageError(f"{self.number}: {self.debtor} owes itself.")


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a set-off takes off one invoice."""

    number: str
    debtor: str
    creditor: str
    cents: int
    left_cents: int
    """Still open afterwards."""


@dataclass(frozen=True, kw_only=True)
class SetOff:
    """What two parties agree to."""

    parties: tuple[str, str]
    """In alphabetical order."""
    currency: str
    cents: int
    """Taken off each side; 0 if only one of them owes."""
    settled: tuple[Settled, ...]
    """The first party's debts before the second's, each side's from the oldest."""
    payer: str
    """Who pays the rest; empty if nothing is left."""
    rest_cents: int
    """What is left to pay of all that was given, settled in part or not at all."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: integers and texts, the same in every language."""
        return {
            "parties": list(self.parties),
            "currency": self.currency,
            "cents": self.cents,
            "settled": [
                {
                    "number": one.number,
                    "debtor": one.debtor,
                    "creditor": one.creditor,
                    "cents": one.cents,
                    "left_cents": one.left_cents,
                }
                for one in self.settled
            ],
            "payer": self.payer,
            "rest_cents": self.rest_cents,
        }


def set_off(debts: Iterable[Debt], *, due_by: date | None = None) -> SetOff:
    """Set off what two parties owe one another.

    `due_by` leaves out what falls due later: nobody has to set off before its time (BGB 387; Lithuanian
    Civil Code 6.130). Both may agree to: None takes all. The outcome does not depend on the debts' order.
    Raises UsageError unless there are exactly two parties, one currency, and no invoice twice.
    """
    chosen = in_order(debt for debt in debts if due_by is None or debt.due <= due_by)
    names = sorted({name for debt in chosen for name in (debt.debtor, debt.creditor)})
    if len(names) != 2:
        raise UsageError(f"a set-off is between two; these debts are between {', '.join(names) or 'nobody'}.")
    currencies = sorted({debt.currency for debt in chosen})
    if len(currencies) > 1:
        raise UsageError(f"debts in {' and '.join(currencies)} cannot be set off: no rate was agreed.")
    first, second = names
    sides = {name: [debt for debt in chosen if debt.debtor == name] for name in names}
    owed = {name: sum(debt.open_cents for debt in side) for name, side in sides.items()}
    cents = min(owed.values())
    payer = max(owed, key=lambda name: owed[name]) if owed[first] != owed[second] else ""
    return SetOff(
        parties=(first, second),
        currency=currencies[0],
        cents=cents,
        settled=(*spread(sides[first], cents), *spread(sides[second], cents)),
        payer=payer,
        rest_cents=abs(owed[first] - owed[second]),
    )


def spread(debts: Iterable[Debt], cents: int) -> tuple[Settled, ...]:
    """Take so many cents off debts, from the oldest on, those of one day by their numbers.

    Raises UsageError if they are not that much.
    """
    settled = []
    for debt in in_order(debts):
        part = min(cents, debt.open_cents)
        cents -= part
        if part:
            settled.append(
                Settled(
                    number=debt.number,
                    debtor=debt.debtor,
                    creditor=debt.creditor,
                    cents=part,
                    left_cents=debt.open_cents - part,
                )
            )
    if cents:
        raise UsageError(f"{format_cents(cents)} more than is owed cannot be set off.")
    return tuple(settled)


def in_order(debts: Iterable[Debt]) -> list[Debt]:
    """The order in which debts are settled: the oldest due day first (BGB 396, 366(2); Lithuanian Civil
    Code 6.55), then by number. Raises UsageError if an invoice is there twice."""
    ordered = sorted(debts, key=lambda debt: (debt.due, debt.creditor, debt.number))
    seen: set[tuple[str, str]] = set()
    for debt in ordered:
        if (debt.creditor, debt.number) in seen:
            raise UsageError(f"the invoice {debt.number} of {debt.creditor} is there twice.")
        seen.add((debt.creditor, debt.number))
    return ordered
