"""Finding cycles among debts that one party knows of: its own, and those it has heard of.

What was heard may be wrong or made up; a ring is a question to its parties, not a claim. The search is bounded, for
others choose what we hear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import UsageError
from p2pgrid.proto.cycle import LEAST_PARTIES, MOST_PARTIES

MAX_STEPS: Final = 1_000_000
"""Debts looked at in one search: about two seconds."""
MAX_RINGS: Final = 64

Owed = dict[tuple[str, str], int]
"""Cents by debtor and creditor."""


@dataclass(frozen=True)
class Ring:
    """Each party owes the next one `cents` at least, the last one the first."""

    parties: tuple[str, ...]
    """The alphabetically first one first."""
    cents: int


def find_rings(
    owed: Owed,
    *,
    through: str = "",
    most_parties: int = MOST_PARTIES,
    least_cents: int = 1,
    max_steps: int = MAX_STEPS,
) -> list[Ring]:
    """Rings that can all be carried out together, the largest sum first; of equal sums the shortest, then by name.

    Set off what two owe one another first: rings have three parties and more. `through` finds those of one party
    alone. Found greedily, so the sum of all is not always the greatest there is. The outcome depends on the debts
    alone. Raises UsageError for a debt that is not above zero, or of somebody to itself.
    """
    left = _checked(owed)
    budget = _Budget(max_steps)
    rings: list[Ring] = []
    while len(rings) < MAX_RINGS:
        ring = _best(left, through, min(most_parties, MOST_PARTIES), least_cents, budget)
        if ring is None:
            break
        rings.append(ring)
        left = carried_out(left, ring)
    return rings


def carried_out(owed: Owed, ring: Ring) -> Owed:
    """The debts once a ring is settled; those that are paid up are gone."""
    after = dict(owed)
    for debtor, creditor in pairs(ring.parties):
        rest = after.get((debtor, creditor), 0) - ring.cents
        if rest < 0:
            raise UsageError(f"{debtor} owes {creditor} less than the ring takes off.")
        after[debtor, creditor] = rest
    return {pair: cents for pair, cents in after.items() if cents}


def pairs(parties: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """Debtor and creditor of each debt of a ring."""
    return zip(parties, (*parties[1:], parties[0]), strict=True)


@dataclass
class _Budget:
    steps: int


class _Search:
    """Depth first from one party, along the largest debts, cut off where the best so far cannot be reached."""

    def __init__(self, creditors: dict[str, list[tuple[str, int]]], most_parties: int, budget: _Budget) -> None:
        self._creditors = creditors
        self._most = most_parties
        self._budget = budget
        self.best: Ring | None = None

    def start(self, party: str, allowed: frozenset[str], least_cents: int) -> None:
        self._first, self._allowed, self._least = party, allowed, least_cents
        self._walk([party], 0)

    def _walk(self, path: list[str], cents: int) -> None:
        for creditor, owed in self._creditors.get(path[-1], ()):
            if not self._budget.steps:
                return
            self._budget.steps -= 1
            through = min(cents, owed) if cents else owed
            if through < self._least or (self.best and through < self.best.cents):
                return  # the rest of the list owes no more
            if creditor == self._first and len(path) >= LEAST_PARTIES:
                self._offer(path, through)
            elif creditor in self._allowed and creditor not in path and len(path) < self._most:
                self._walk([*path, creditor], through)

    def _offer(self, path: list[str], cents: int) -> None:
        at = path.index(min(path))
        ring = Ring((*path[at:], *path[:at]), cents)
        if self.best is None or _rank(ring) < _rank(self.best):
            self.best = ring


def _best(owed: Owed, through: str, most_parties: int, least_cents: int, budget: _Budget) -> Ring | None:
    creditors: dict[str, list[tuple[str, int]]] = {}
    for (debtor, creditor), cents in sorted(owed.items(), key=lambda item: (-item[1], item[0])):
        creditors.setdefault(debtor, []).append((creditor, cents))
    search = _Search(creditors, most_parties, budget)
    parties = sorted(creditors)
    for at, party in enumerate(parties):
        if through:
            if party == through:
                search.start(party, frozenset(parties), least_cents)
        else:  # a ring is found once, from its alphabetically first party
            search.start(party, frozenset(parties[at:]), least_cents)
    return search.best


def _rank(ring: Ring) -> tuple[int, int, tuple[str, ...]]:
    return -ring.cents, len(ring.parties), ring.parties


def _checked(owed: Owed) -> Owed:
    for (debtor, creditor), cents in owed.items():
        if cents <= 0 or debtor == creditor:
            raise UsageError(f"a debt of {cents} cents of {debtor} to {creditor} is none.")
    return dict(owed)
