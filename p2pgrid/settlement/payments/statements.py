"""A bank's file as it was read: statements, their booked entries, and what is not booked yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from p2pgrid.settlement.payments.entries import BookedEntry


@dataclass(frozen=True, kw_only=True)
class PendingEntry:
    """What the bank announces and has not booked. It is money in sight, never money: nothing is matched with it."""

    line: int
    amount_cents: int
    currency: str
    expected: date | None
    end_to_end_id: str
    counterparty_name: str


@dataclass(frozen=True, kw_only=True)
class BankStatement:
    """One statement (or notification) for one account."""

    account_iban: str
    statement_id: str
    """The bank's; unique by itself at some banks only."""
    sequence_number: str
    line: int
    currency: str
    opening_cents: int | None
    closing_cents: int | None
    is_balanced: bool
    """Opening balance and entries were added up and give the closing one. False where the bank gives no two
    balances, or this is one page of several: then a missing entry cannot be noticed."""
    entries: tuple[BookedEntry, ...]
    pending: tuple[PendingEntry, ...]


@dataclass(frozen=True, kw_only=True)
class BankFile:
    """All that one file says."""

    name: str
    kind: str
    """`camt.053.001.08`, or a rail's own."""
    message_id: str
    statements: tuple[BankStatement, ...]

    @property
    def entries(self) -> tuple[BookedEntry, ...]:
        """Of all statements, in the file's order."""
        return tuple(entry for statement in self.statements for entry in statement.entries)
