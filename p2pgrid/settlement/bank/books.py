"""All that is known at one moment of a run, and what matching makes of new entries in its light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.settlement.bank.names import CURRENCY, Names
from p2pgrid.settlement.bank.store import Known
from p2pgrid.settlement.bank.stored import Target, from_store
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.paying.carried_out import CarriedOut
from p2pgrid.settlement.payments.decisions import Booking, Decision, Evidence, Kind
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.matching import match

_PROVING: Final = frozenset({Evidence.REFERENCE, Evidence.CUT_REFERENCE, Evidence.MISTYPED_REFERENCE, Evidence.PERSON})


@dataclass(frozen=True)
class Books:
    """All that is known at one moment of a run."""

    sides: tuple[Side, ...]
    known: Mapping[str, list[Known]]
    carried: CarriedOut
    names: Names

    @property
    def earlier(self) -> list[Decision]:
        """What was booked, for `match`; and what the ledger has ahead besides."""
        found = [
            from_store(one[0].entry, one[0].decision, self.names.name_of)
            for one in self.known.values()
            if one[0].decision.is_booked
        ]
        return [*found, *(other for side in self.sides if not side.is_purchase for other in self._moved(side))]

    def is_proven(self, decision: Decision) -> bool:
        """False for what amount and payer alone suggest, where that account has not paid for that client before."""
        targets = {self.names.target_of(one.invoice_number) for one in decision.bookings}
        if decision.evidence is not Evidence.AMOUNT_AND_DEBTOR or all(one.is_purchase for one in targets):
            return True
        other_of = {side.id: side.other for side in self.sides}
        proven = {
            other_of.get(one.target.channel)
            for known in self.known.values()
            if known[0].entry.counterparty_iban == decision.entry.counterparty_iban != ""
            and known[0].decision.is_booked
            and known[0].decision.evidence in _PROVING
            for one in known[0].decision.bookings
        }
        return all(other_of.get(target.channel) in proven for target in targets)

    def _moved(self, side: Side) -> list[Decision]:
        """What stands ahead by the ledger and not by entries of the bank's, as a decision that moves nothing."""
        ahead = Target(side.id, (b"", ""))
        by_entries = sum(
            one.cents
            for known in self.known.values()
            if known[0].decision.is_booked
            for one in known[0].decision.bookings
            if one.target == ahead
        )
        cents = side.found.ahead_cents - by_entries
        if not cents:
            return []
        nothing = BookedEntry(
            account_iban="",
            source_kind="ledger",
            statement_id="",
            line=0,
            amount_cents=0,
            currency=CURRENCY,
            booking_date=date.min,
            key=f"ledger {side.id.hex()}",
        )
        name = self.names.name_of(ahead)
        return [
            Decision(
                entry=nothing,
                kind=Kind.COMBINED,
                reason="Booked by the ledger alone.",
                bookings=(Booking(f"invoices on channel {side.id.hex()}", -cents),),
                on_account_cents=cents,
                on_account_of=name,
            )
        ]


def matched(books: Books, entries: Sequence[BookedEntry]) -> list[Decision]:
    """What `match` decides; but what amount and payer alone suggest is a person's to book, unless that account has
    paid for this client before, under a reference. Name and account of a client are its own word, and the amount of
    an invoice is its choice: together they could be made to fit another's money."""
    held: dict[str, Decision] = {}
    while True:
        rest = [entry for entry in entries if entry.key not in held]
        made = match(rest, books.names.invoices, prepaid=books.names.prepaid, earlier=books.earlier)
        doubtful = [one for one in made if one.is_booked and not books.is_proven(one)]
        if not doubtful:
            return [*made, *held.values()]
        for one in doubtful:
            held[one.entry.key] = Decision(
                entry=one.entry,
                kind=Kind.AMBIGUOUS,
                reason=f"Payer and amount fit {', '.join(one.names)} alone; but it names none, and this account has "
                "not paid for that client under a reference before.",
                candidates=one.names,
                findings=one.findings,
            )
