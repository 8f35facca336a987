"""Whether two entries with different keys may still be one movement, told twice.

Keys differ where files give different things of one movement: one has the bank's reference and the other has none, one
tells a batch as a sum and the other its parts, a notification has another day than the statement. Nothing here says
that they *are* one. It says that nobody but a person should book the second.
"""

from __future__ import annotations

from typing import Final

from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.reference import normalised

MAX_DAYS_APART: Final = 5
"""Between the day in a notification (or a person's list) and that in the statement: a long weekend."""


def likeness(entry: BookedEntry) -> tuple[str, int, str]:
    """What any two tellings of one movement agree in: account, amount and currency."""
    return entry.account_iban, entry.amount_cents, entry.currency


def told_by(entry: BookedEntry) -> tuple[str, str, str]:
    """Which statement, as it was read, told of the entry. What one statement tells as two entries are two."""
    return entry.source_kind, entry.statement_id, entry.telling


def sort_of(entry: BookedEntry) -> tuple[object, ...]:
    """All by which `are_told_apart` judges, but for the day."""
    return *told_by(entry), entry.bank_reference_of, bool(entry.bank_reference)


def are_told_apart(entry: BookedEntry, other: BookedEntry) -> bool:
    """True for two entries of one statement; and of statements of one kind, for those of two days, and those to which
    the bank gives references of one sort: these differ for different movements."""
    if told_by(entry) == told_by(other):
        return True
    is_one_sort = entry.bank_reference_of == other.bank_reference_of
    have_references = is_one_sort and bool(entry.bank_reference) and bool(other.bank_reference)
    return entry.source_kind == other.source_kind and (have_references or entry.booking_date != other.booking_date)


def may_be_one(entry: BookedEntry, other: BookedEntry) -> bool:
    """True if two entries of one likeness that are not told apart may be one movement.

    They are not where accounts or end-to-end ids that both give differ, or where the days differ, unless the two give
    one reference or end-to-end id.
    """
    ids = (
        (normalised(entry.end_to_end_id), normalised(other.end_to_end_id)),
        (normalised(entry.bank_reference), normalised(other.bank_reference)),
    )
    if entry.booking_date != other.booking_date and not any(mine and mine == theirs for mine, theirs in ids):
        return False
    given = (ids[0], (entry.counterparty_iban, other.counterparty_iban))
    return not any(mine and theirs and mine != theirs for mine, theirs in given)


def may_be_a_part(entry: BookedEntry, other: BookedEntry) -> bool:
    """True if, of two entries that have to do with one invoice, one may be the batch of which the other is a part."""
    return (
        entry.is_collective != other.is_collective
        and told_by(entry) != told_by(other)
        and (entry.account_iban, entry.currency) == (other.account_iban, other.currency)
        and (entry.amount_cents > 0) == (other.amount_cents > 0)
        and (entry.booking_date == other.booking_date or entry.source_kind != other.source_kind)
        and abs((entry.booking_date - other.booking_date).days) <= MAX_DAYS_APART
    )
