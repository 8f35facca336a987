"""What other rooms of settlement know that books need: set-offs, billing details, what bank entries were taken for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import taken_off
from p2pgrid.settlement.bank.store import BankStore
from p2pgrid.settlement.bank.stored import NOT_OURS
from p2pgrid.settlement.books.archive_contents import as_json
from p2pgrid.settlement.books.days import Span
from p2pgrid.settlement.books.parties import Parties, StoredParties
from p2pgrid.settlement.books.records import Books, SetOffLeg, SetOffs
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.payments.decisions import Kind

_UNRELATED: Final = frozenset({Kind.UNRELATED.value, NOT_OURS})
"""Kinds of decisions about entries that have nothing to do with us: rent, other customers."""


def parties_in(database: sqlite3.Connection) -> Parties:
    """Billing details that are kept in settlement.db."""
    return StoredParties(DetailsBook(database))


def set_offs_in(ledger: Books | Ledger) -> SetOffs:
    """Set-offs in force, and settled legs of cycles, of a ledger."""
    return LedgerSetOffs(ledger)


class LedgerSetOffs:
    """What records in a ledger take off the debts of channels."""

    def __init__(self, ledger: Books | Ledger) -> None:
        self._ledger: Final = ledger

    def legs(self, channel: bytes) -> Iterable[SetOffLeg]:
        """By time. Raises LedgerError."""
        set_offs = self._ledger.settlement(SetOff, channel)
        legs = self._ledger.settlement(Leg, channel)
        currencies = {one.id: one.message.currency for one in set_offs}
        currencies |= {one.id: one.message.currency for one in legs}
        cycles, verdicts = self._ledger.settlement(Cycle, channel), self._ledger.settlement(CycleVerdict, channel)
        for taken in taken_off(channel, set_offs, cycles, legs, verdicts):
            claims = [(one.statement, one.invoice_number, one.cents) for one in taken.claims]
            for statement, number, cents in claims or [(b"", "", taken.cents)]:
                yield SetOffLeg(
                    record=taken.record_id,
                    channel=channel,
                    statement=statement,
                    invoice_number=number,
                    currency=currencies[taken.record_id],
                    amount_cents=cents,
                    set_off_ms=taken.at_ms,
                )


def bank_files(database: sqlite3.Connection, span: Span) -> Mapping[str, bytes]:
    """What the bank's entries of these days were taken for, as a file of an archive; no entry that has nothing to do
    with us. Raises LedgerError."""
    rows = []
    for key, tellings in sorted(BankStore(database).known().items()):
        known = tellings[0]
        if known.entry.booking_date in span and known.decision.kind not in _UNRELATED:
            entry = msgspec.to_builtins(known.entry)
            rows.append(
                {"key": key, "file": known.file, "entry": entry, "decision": msgspec.to_builtins(known.decision)}
            )
    return {"bank/entries.json": as_json(rows)} if rows else {}
