"""Decisions as they are kept: by channel, statement and invoice, not by the names that one run of matching used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pgrid.settlement.open_items import AHEAD, Place
from p2pgrid.settlement.payments.decisions import (
    BOOKED_KINDS,
    Booking,
    Decision,
    Evidence,
    Finding,
    Kind,
)
from p2pgrid.settlement.payments.entries import BookedEntry

NOT_OURS: Final = "not-ours"
"""A person said so: it is never matched again."""


@dataclass(frozen=True, slots=True)
class Target:
    """An invoice, or what is paid ahead on a channel."""

    channel: bytes
    place: Place
    is_purchase: bool = False
    """True if we are the channel's client."""

    @property
    def number(self) -> str:
        """The invoice's; empty: ahead."""
        return self.place[1]

    @property
    def ahead(self) -> Target:
        """Money ahead on the same channel."""
        return Target(self.channel, AHEAD, self.is_purchase)


class StoredBooking(msgspec.Struct, frozen=True, kw_only=True):
    """So many cents of an entry for one target."""

    channel: str
    statement: str = ""
    number: str = ""
    is_purchase: bool = False
    cents: int

    @property
    def target(self) -> Target:
        return Target(bytes.fromhex(self.channel), (bytes.fromhex(self.statement), self.number), self.is_purchase)

    @classmethod
    def of(cls, target: Target, cents: int) -> StoredBooking:
        """As it is written."""
        return cls(
            channel=target.channel.hex(),
            statement=target.place[0].hex(),
            number=target.number,
            is_purchase=target.is_purchase,
            cents=cents,
        )


class StoredDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry was taken for."""

    kind: str
    """One of `Kind`, or `NOT_OURS`."""
    reason: str
    decided_ms: int
    is_by_person: bool = False
    evidence: str = Evidence.NONE.value
    bookings: tuple[StoredBooking, ...] = ()
    """Every cent of a booked entry, what is ahead as the last."""
    undoes: str = ""
    candidates: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def is_booked(self) -> bool:
        """True if its bookings count."""
        return self.kind in BOOKED_KINDS

    @property
    def waits(self) -> bool:
        """True if a person, or a later run, must say how it is."""
        return self.kind == Kind.AMBIGUOUS


def to_store(decision: Decision, target_of: Callable[[str], Target], now_ms: int) -> StoredDecision:
    """A decision by the names of one run. What stands on account of an invoice is ahead on its channel."""
    bookings = [StoredBooking.of(target_of(one.invoice_number), one.amount_cents) for one in decision.bookings]
    if decision.on_account_cents:
        bookings.append(StoredBooking.of(target_of(decision.on_account_of).ahead, decision.on_account_cents))
    return StoredDecision(
        kind=decision.kind.value,
        reason=decision.reason,
        decided_ms=now_ms,
        is_by_person=decision.evidence is Evidence.PERSON,
        evidence=decision.evidence.value,
        bookings=tuple(bookings),
        undoes=decision.undoes,
        candidates=decision.candidates,
        findings=tuple(finding.value for finding in decision.findings),
    )


def from_store(entry: BookedEntry, stored: StoredDecision, name_of: Callable[[Target], str]) -> Decision:
    """The decision by the names of this run, for `match`, which is to know what was booked."""
    ahead = [one for one in stored.bookings if not one.number]
    return Decision(
        entry=entry,
        kind=Kind(stored.kind),
        reason=stored.reason,
        evidence=Evidence(stored.evidence),
        bookings=tuple(Booking(name_of(one.target), one.cents) for one in stored.bookings if one.number),
        on_account_cents=sum(one.cents for one in ahead),
        on_account_of=name_of(ahead[0].target) if ahead else "",
        undoes=stored.undoes,
        findings=tuple(Finding(finding) for finding in stored.findings),
    )
