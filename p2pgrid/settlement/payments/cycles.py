"""Cycles of debts: A owes B, B owes C, C owes A (docs/decisions/cycles-of-debts.md).

What all of them owe is taken off every debt, and nobody is worse off by a cent. A cycle is only found and proposed
here: each debt in it is set off by a *leg*, a bilateral agreement between its debtor and its creditor, and all legs
have one condition, the same for all: that every leg was signed by both its sides, and that the timekeeper, whom the
proposal names, was shown all of them by the deadline. So either every leg takes effect or none does. No money moves,
and nobody holds any, ever.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.settlement.payments.cents import MAX_CENTS, format_cents
from p2pgrid.settlement.payments.setoff import Settled

MOST_PARTIES: Final = 6
LEAST_PARTIES: Final = 3
MIN_NONCE_CHARS: Final = 16

_DIGEST_CHARS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A proposal: each party owes the next, the last one the first, and `cents` are taken off each debt."""

    parties: tuple[str, ...]
    """Peer ids or whatever names both sides know. The alphabetically first one stands first."""
    cents: int
    currency: str = "EUR"
    deadline_ms: int
    """Until when the timekeeper must have been shown all signatures, Unix milliseconds."""
    timekeeper: str
    """No party of the cycle. It says whether the signatures were complete in time, and can do nothing else."""
    nonce: str
    """Random, 16 characters or more: a proposal that lapsed is made again under another."""

    def __post_init__(self) -> None:
        if not LEAST_PARTIES <= len(self.parties) <= MOST_PARTIES or len(set(self.parties)) != len(self.parties):
            raise UsageError(f"a cycle has {LEAST_PARTIES} to {MOST_PARTIES} different parties, not {self.parties}.")
        if self.parties[0] != min(self.parties):
            raise UsageError("a cycle begins with its alphabetically first party, so that it has one form.")
        if not 0 < self.cents <= MAX_CENTS:
            raise UsageError(f"{format_cents(self.cents)} cannot be set off.")
        if self.timekeeper in self.parties or not self.timekeeper:
            raise UsageError("the timekeeper of a cycle is no party of it.")
        if len(self.nonce) < MIN_NONCE_CHARS:
            raise UsageError(f"the nonce has {len(self.nonce)} characters; at least {MIN_NONCE_CHARS}.")

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the proposal's one form. Every leg is signed with it, so for this cycle alone."""
        return _digest(
            {
                "cents": self.cents,
                "currency": self.currency,
                "deadline_ms": self.deadline_ms,
                "nonce": self.nonce,
                "parties": list(self.parties),
                "timekeeper": self.timekeeper,
            }
        )

    def sides(self, index: int) -> tuple[str, str]:
        """Debtor and creditor of a leg."""
        return self.parties[index], self.parties[(index + 1) % len(self.parties)]

    def legs_of(self, party: str) -> tuple[int, int]:
        """The leg in which a party is creditor, and that in which it is debtor. Raises UsageError for a stranger."""
        if party not in self.parties:
            raise UsageError(f"{party} is no party of this cycle.")
        at = self.parties.index(party)
        return (at - 1) % len(self.parties), at


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What debtor and creditor of one debt sign: so much of it is set off, if the whole cycle is."""

    cycle: str
    """The cycle's digest."""
    index: int
    debtor: str
    creditor: str
    cents: int
    settles: str
    """SHA-256 in hex of which invoices are settled by how much (`settles_digest`). The two know them; the others need
    not."""

    @property
    def digest(self) -> str:
        """SHA-256 in hex: what the two sign."""
        return _digest(
            {
                "cents": self.cents,
                "creditor": self.creditor,
                "cycle": self.cycle,
                "debtor": self.debtor,
                "index": self.index,
                "settles": self.settles,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a timekeeper says of a cycle, once and for all. Signed by it."""

    cycle: str
    """The cycle's digest."""
    timekeeper: str
    is_complete: bool
    """True: it was shown every leg with both signatures by the deadline. False: by then it was not."""


class State(StrEnum):
    """What has become of a cycle."""

    OPEN = "open"
    """Nothing has taken effect, and nothing is certain: debts are as they were."""
    SETTLED = "settled"
    """Every leg has taken effect."""
    VOID = "void"
    """No leg has, and none will."""


Signed = Collection[tuple[int, str]]
"""Whose signatures over which legs were verified: leg index and party."""


def make_leg(cycle: Cycle, index: int, settled: Iterable[Settled]) -> Leg:
    """The leg of one debt, from the invoices that its two sides settle (`setoff.spread`).

    Raises UsageError if they are not between the two, or do not come to the cycle's sum.
    """
    debtor, creditor = cycle.sides(index)
    chosen = list(settled)
    if any((one.debtor, one.creditor) != (debtor, creditor) for one in chosen):
        raise UsageError(f"leg {index} settles what {debtor} owes {creditor}, and nothing else.")
    if sum(one.cents for one in chosen) != cycle.cents:
        raise UsageError(f"leg {index} settles {format_cents(cycle.cents)}, neither more nor less.")
    return Leg(
        cycle=cycle.digest,
        index=index,
        debtor=debtor,
        creditor=creditor,
        cents=cycle.cents,
        settles=settles_digest(chosen),
    )


def settles_digest(settled: Iterable[Settled]) -> str:
    """SHA-256 in hex over invoice numbers and cents, in the order of settling."""
    return _digest([[one.number, one.cents] for one in settled])


def why_not(
    cycle: Cycle, me: str, *, i_owe: Mapping[str, int], owed_to_me: Mapping[str, int], now_ms: int
) -> list[str]:
    """Why a party should not sign its two legs, from its own books alone; empty if it may.

    `i_owe` and `owed_to_me` have cents by the other side's name, less what other open cycles have legs on. Whether
    the debts of others are real is for them to know: if one is not, its debtor or creditor does not sign, and all is
    void.
    """
    incoming, outgoing = cycle.legs_of(me)
    debtor, creditor = cycle.sides(incoming)[0], cycle.sides(outgoing)[1]
    reasons = []
    if owed_to_me.get(debtor, 0) < cycle.cents:
        reasons.append(
            f"{debtor} owes {format_cents(owed_to_me.get(debtor, 0))}, less than {format_cents(cycle.cents)}."
        )
    if i_owe.get(creditor, 0) < cycle.cents:
        reasons.append(
            f"{creditor} is owed {format_cents(i_owe.get(creditor, 0))}, less than {format_cents(cycle.cents)}."
        )
    if now_ms >= cycle.deadline_ms:
        reasons.append("Its deadline is over.")
    return reasons


def is_complete(cycle: Cycle, legs: Collection[Leg], signed: Signed) -> bool:
    """True if there is one leg for each debt of the cycle, for this cycle, and both its sides signed it."""
    if sorted(leg.index for leg in legs) != list(range(len(cycle.parties))):
        return False
    have = set(signed)
    return all(
        leg.cycle == cycle.digest
        and leg.cents == cycle.cents
        and (leg.debtor, leg.creditor) == cycle.sides(leg.index)
        and {(leg.index, leg.debtor), (leg.index, leg.creditor)} <= have
        for leg in legs
    )


def judge(cycle: Cycle, legs: Collection[Leg], signed: Signed, *, said: Verdict | None, now_ms: int) -> Verdict | None:
    """What the timekeeper of a cycle says when it is asked, and must keep before it says it; None for "not yet".

    `said` is what it has said before: it never says another thing.
    """
    if said is not None:
        return said
    if now_ms <= cycle.deadline_ms:
        if not is_complete(cycle, legs, signed):
            return None
        return Verdict(cycle=cycle.digest, timekeeper=cycle.timekeeper, is_complete=True)
    return Verdict(cycle=cycle.digest, timekeeper=cycle.timekeeper, is_complete=False)


def state_of(cycle: Cycle, legs: Collection[Leg], signed: Signed, verdicts: Iterable[Verdict]) -> State:
    """What has become of a cycle, from legs, signatures and verdicts whose signatures the caller has verified.

    Everybody who has the same records comes to the same state, and more records only ever end OPEN. The one exception
    is a timekeeper that signed both verdicts, which proves its fraud: then the cycle is settled, for all had agreed.
    """
    known = [one for one in verdicts if (one.cycle, one.timekeeper) == (cycle.digest, cycle.timekeeper)]
    if any(one.is_complete for one in known) and is_complete(cycle, legs, signed):
        return State.SETTLED
    if any(not one.is_complete for one in known) and not any(one.is_complete for one in known):
        return State.VOID
    return State.OPEN


def _digest(content: object) -> str:
    """Of JSON without spaces, keys in order, ASCII: one form for one content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(b"p2pgrid cycle\n" + text.encode()).hexdigest()
