"""What disputes take off receipts, and what they hold back, at a moment (docs/spec/messages.md, rules 18 and 22b).

A statement counts both by its `stated_ms`: an accepted dispute is a credit, an open one is held back until it is
answered, and a rejected one is neither. Pure: both sides come to the same from the same disputes and answers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, NamedTuple, cast

from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.dispute_rules import contested_pico, faults_of_dispute, is_accepted, is_in_term
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role


@dataclass(frozen=True, slots=True)
class Contest:
    """A dispute with force, and how it ended, if it did."""

    receipt: bytes
    """The id of the receipt that it is about; both sides can dispute one."""
    receipt_number: int
    amount_pico: int
    """How much less is owed by the dispute than by the receipt."""
    disputed_ms: int
    answered_ms: int | None
    """When it was accepted or rejected; None while it is open."""
    is_accepted: bool
    is_proven: bool = False
    """The provider itself accepted it in its term: nothing that nobody shows can take the credit back."""
    is_dispute_known: bool = True
    """False where the other side may not have had it."""
    is_answer_known: bool = True
    has_force: bool = True
    """False where it has none, but for a side to which the other's signature on the receipt never came."""

    def is_credited(self, at_ms: int) -> bool:
        """True if it takes its amount off at that time."""
        return self.is_accepted and self.answered_ms is not None and self.answered_ms <= at_ms

    def is_open(self, at_ms: int) -> bool:
        """True if it holds its amount back at that time."""
        return self.disputed_ms <= at_ms and (self.answered_ms is None or self.answered_ms > at_ms)


def contest_of(
    dispute: Dispute, answer: Answer | None, *, receipt: Receipt, receipt_id: bytes, countersigned: bool, days: int
) -> Contest | None:
    """The dispute as a contest; None if it does not fit its receipt, or came after its term.

    `countersigned`: the client has signed the receipt. `days`: the channel's `dispute_days`.
    """
    if faults_of_dispute(dispute, receipt=receipt):
        return None
    if not is_in_term(dispute, receipt=receipt, countersigned=countersigned, dispute_days=days):
        return None
    accepted = answer is not None and is_accepted(answer, dispute)
    # A copy of the receipt without the client's signature is easily made; the term then is what it would be with it.
    in_term = is_in_term(dispute, receipt=receipt, countersigned=True, dispute_days=days)
    return Contest(
        receipt=receipt_id,
        receipt_number=receipt.receipt_number,
        amount_pico=contested_pico(dispute, receipt=receipt),
        disputed_ms=dispute.disputed_ms,
        answered_ms=answer.answered_ms if answer is not None else None,
        is_accepted=accepted,
        is_proven=accepted and in_term and answer is not None and answer.by is Role.PROVIDER,
    )


class Taken(NamedTuple):
    """What disputes come to at a moment."""

    credits_pico: int
    held_pico: int


def taken_at(contests: Iterable[Contest], *, last_receipt: int, at_ms: int) -> Taken:
    """Credits since the channel's beginning and what is held back, of receipts up to `last_receipt`."""
    each = [_of_one(group, at_ms) for group in _by_receipt(contests, last_receipt)]
    return Taken(sum(one.credits_pico for one in each), sum(one.held_pico for one in each))


class TakenBounds(NamedTuple):
    """The least and the most that disputes can come to, for whoever cannot tell exactly."""

    least: Taken
    most: Taken
    proven_credits_pico: int
    """The least credits that nothing which is not shown can change."""


def bounds_at(
    contests: Iterable[Contest], moments: Sequence[tuple[int, int]], *, tolerance_ms: int
) -> list[TakenBounds]:
    """As `taken_at`, for each (last_receipt, at_ms), at any time that is no further off than the tolerance.

    What is not known to the other side is counted or not. The cost grows with contests and moments, not their product.
    """
    groups = list(_by_receipt(contests, max((last for last, _ in moments), default=0)))
    steps = sorted(step for group in groups for step in _steps_of(group, tolerance_ms))
    numbers = sorted({group[0].receipt_number for group in groups})
    sums = [_PrefixSums(len(numbers)) for _ in range(_VALUES)]
    found: dict[int, TakenBounds] = {}
    at_step = 0
    for index in sorted(range(len(moments)), key=lambda i: moments[i][1]):
        last_receipt, at_ms = moments[index]
        while at_step < len(steps) and steps[at_step][0] <= at_ms:
            _, number, deltas = steps[at_step]
            for one, delta in zip(sums, deltas, strict=True):
                one.add(bisect_left(numbers, number), delta)
            at_step += 1
        count = bisect_right(numbers, last_receipt)
        values = [one.of_first(count) for one in sums]
        found[index] = TakenBounds(Taken(values[0], values[1]), Taken(values[2], values[3]), values[4])
    return [found[index] for index in range(len(moments))]


_VALUES: Final = 5
_Values = tuple[int, int, int, int, int]


def _steps_of(group: Sequence[Contest], tolerance_ms: int) -> Iterable[tuple[int, int, _Values]]:
    """When what a receipt's disputes come to changes, for whoever cannot tell the time exactly, and by how much."""
    events = sorted({time for c in group for time in (c.disputed_ms, c.answered_ms) if time is not None})
    proven = [contest for contest in group if contest.is_proven]
    before = (0,) * _VALUES
    for at_ms in sorted({event + off for event in events for off in (-tolerance_ms, tolerance_ms)}):
        first, last = at_ms - tolerance_ms, at_ms + tolerance_ms
        times = [first, *(event for event in events if first < event <= last)]
        seen = [_of_one(variant, time) for variant in _variants(group) for time in times]
        values = (
            min(one.credits_pico for one in seen),
            min(one.held_pico for one in seen),
            max(one.credits_pico for one in seen),
            max(one.held_pico for one in seen),
            _of_one(proven, first).credits_pico,
        )
        deltas = tuple(now - then for now, then in zip(values, before, strict=True))
        before = values
        yield at_ms, group[0].receipt_number, cast("_Values", deltas)


class _PrefixSums:
    """Numbers of which each may change, and the sum of the first few is asked for (a Fenwick tree)."""

    def __init__(self, size: int) -> None:
        self._tree = [0] * (size + 1)

    def add(self, index: int, amount: int) -> None:
        index += 1
        while index < len(self._tree):
            self._tree[index] += amount
            index += index & -index

    def of_first(self, count: int) -> int:
        total = 0
        while count:
            total += self._tree[count]
            count -= count & -count
        return total


def _by_receipt(contests: Iterable[Contest], last_receipt: int) -> Iterable[Sequence[Contest]]:
    groups: dict[bytes, list[Contest]] = defaultdict(list)
    for contest in contests:
        if contest.receipt_number <= last_receipt:
            groups[contest.receipt].append(contest)
    return groups.values()


def _of_one(contests: Sequence[Contest], at_ms: int) -> Taken:
    """Of one receipt: the dispute that takes most off counts, and an open one beyond it."""
    credit = max((c.amount_pico for c in contests if c.is_credited(at_ms)), default=0)
    open_pico = max((c.amount_pico for c in contests if c.is_open(at_ms)), default=0)
    return Taken(credit, max(open_pico - credit, 0))


def _variants(contests: Sequence[Contest]) -> list[list[Contest]]:
    """The contests as the other side may see them."""
    return [[contest for contest in variant if contest is not None] for variant in product(*map(_seen, contests))]


def _seen(contest: Contest) -> list[Contest | None]:
    seen: list[Contest | None] = [contest]
    if contest.answered_ms is not None and not contest.is_answer_known:
        seen.append(replace(contest, answered_ms=None, is_accepted=False))
    return seen if contest.is_dispute_known else [*seen, None]
