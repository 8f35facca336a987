"""Cycles of debts (docs/decisions/cycles-of-debts.md): Cycle, Leg, CycleVerdict.

A owes B, B owes C, C owes A. What all of them owe is taken off every debt, by a leg that its own two parties sign. All
legs are in force, or none is: `cycle_rules` says which.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import CurrencyCode, Digest, Id, Key, Nested, TimeMs
from p2pgrid.proto.record import Message
from p2pgrid.proto.set_off import CentsOff

LEAST_PARTIES: Final = 3
MOST_PARTIES: Final = 6


class CycleDebt(Nested, frozen=True, kw_only=True):
    """One debt of a cycle. Whoever is creditor here is debtor of the next one, and of the first that of the last."""

    channel: Id
    creditor: Key
    """The channel's provider."""
    debtor: Key
    """The channel's client."""
    card: Digest
    """The id of a Card that names the creditor's key and that with which it owes in the next debt; empty where the two
    are one key."""


class Cycle(Message, frozen=True, kw_only=True):
    """A proposal: so much is taken off each of these debts, or nothing off any. Signed by its proposer, as provider."""

    payload_type: ClassVar[str] = "/p2pgrid/cycle/1"
    max_payload_bytes: ClassVar[int] = 2048

    proposer: Key
    """A creditor or a debtor of one of the debts."""
    debts: Annotated[tuple[CycleDebt, ...], Meta(min_length=LEAST_PARTIES, max_length=MOST_PARTIES)]
    """That with the lowest channel id first, so that one content has one form."""
    currency: CurrencyCode
    amount_cents: CentsOff
    """Taken off each debt."""
    deadline_ms: TimeMs
    """By the timekeeper's clock: until when it must have been shown every leg with both signatures."""
    timekeeper: Key
    """No party. It says whether the legs were complete in time, and can do nothing else."""
    proposed_ms: TimeMs
    nonce: Id
    """Random: a proposal that lapsed is made again under another."""

    def check(self) -> None:
        keys = [key for debt in self.debts for key in (debt.creditor, debt.debtor)]
        if self.debts[0].channel != min(debt.channel for debt in self.debts):
            raise InvalidRecord("out-of-range", "a cycle begins with the lowest channel id.")
        for name in ("channel", "creditor", "debtor"):
            if len({getattr(debt, name) for debt in self.debts}) != len(self.debts):
                raise InvalidRecord("out-of-range", f"a {name} is in a cycle once.")
        for debt, following in zip(self.debts, (*self.debts[1:], self.debts[0]), strict=True):
            if debt.creditor == debt.debtor:
                raise InvalidRecord("out-of-range", "nobody owes itself.")
            if len(debt.card) not in (0, 32):
                raise InvalidRecord("out-of-range", "an id has 32 bytes, or none where there is none.")
            if bool(debt.card) is (debt.creditor == following.debtor):
                raise InvalidRecord("out-of-range", "a debt names a card if its creditor owes with another key.")
        if self.timekeeper in keys:
            raise InvalidRecord("out-of-range", "the timekeeper of a cycle is no party of it.")
        if self.proposer not in keys:
            raise InvalidRecord("out-of-range", "a cycle is proposed by one of its parties.")
        if self.deadline_ms <= self.proposed_ms:
            raise InvalidRecord("out-of-range", "a cycle's deadline comes after its proposal.")


class Leg(Message, frozen=True, kw_only=True):
    """One debt's part in a cycle. Signed by the channel's provider, who is the creditor, and by its client.

    All of it follows from the Cycle: there is one leg for each of its debts, whoever makes it (`cycle_rules.legs_of`).
    It names no invoice, since strangers see it: it covers the channel's oldest.
    """

    payload_type: ClassVar[str] = "/p2pgrid/leg/1"

    channel: Id
    cycle: Id
    """The Cycle's record."""
    creditor: Key
    debtor: Key
    currency: CurrencyCode
    amount_cents: CentsOff

    def check(self) -> None:
        if self.creditor == self.debtor:
            raise InvalidRecord("out-of-range", "nobody owes itself.")


class CycleVerdict(Message, frozen=True, kw_only=True):
    """What a timekeeper says of a cycle, once and for all. Signed by the timekeeper, as provider."""

    payload_type: ClassVar[str] = "/p2pgrid/cycle-verdict/1"

    cycle: Id
    """The Cycle's record."""
    timekeeper: Key
    is_complete: bool
    """True: it was shown every leg with both signatures by the deadline. False: by then it was not."""
    judged_ms: TimeMs
    """By the timekeeper's clock. Statements count a settled leg by this time."""
