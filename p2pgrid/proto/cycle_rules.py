"""What becomes of a cycle of debts (docs/decisions/cycles-of-debts.md): the one condition of all its legs.

A leg is in force if, and only if, every leg of the cycle was signed by both its sides, and the timekeeper that the
cycle names says that it was shown all of them by the deadline. Pure, over messages whose form was checked and whose
signatures the caller has verified.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg


class CycleState(StrEnum):
    """What has become of a cycle."""

    OPEN = "open"
    """Nothing is in force, and nothing is certain: debts are as they were."""
    SETTLED = "settled"
    """Every leg is in force."""
    VOID = "void"
    """No leg is, and none will be."""


def legs_of(cycle: Cycle, cycle_id: bytes) -> tuple[Leg, ...]:
    """The legs of a cycle, one for each debt in their order. `cycle_id`: the Cycle's record."""
    return tuple(
        Leg(
            channel=debt.channel,
            cycle=cycle_id,
            creditor=debt.creditor,
            debtor=debt.debtor,
            currency=cycle.currency,
            amount_cents=cycle.amount_cents,
        )
        for debt in cycle.debts
    )


def is_complete(cycle: Cycle, cycle_id: bytes, legs: Iterable[Leg]) -> bool:
    """Is every leg of the cycle there? `legs`: those that both their sides have signed; others are passed over."""
    return set(legs_of(cycle, cycle_id)) <= set(legs)


def is_verdict_of(verdict: CycleVerdict, cycle: Cycle, cycle_id: bytes) -> bool:
    """Is it a word of the cycle's timekeeper? "Not complete" can only be said once the deadline is over."""
    is_early = not verdict.is_complete and verdict.judged_ms <= cycle.deadline_ms
    return (verdict.cycle, verdict.timekeeper) == (cycle_id, cycle.timekeeper) and not is_early


def state_of(cycle: Cycle, cycle_id: bytes, legs: Iterable[Leg], verdicts: Iterable[CycleVerdict]) -> CycleState:
    """What has become of a cycle. `legs`: those that both their sides have signed.

    Everybody who has the same records comes to the same state, and more records only ever end OPEN. The one exception
    is a timekeeper that signed both verdicts, which proves its fraud: then the cycle is settled, for all had agreed.
    """
    said = {one.is_complete for one in verdicts if is_verdict_of(one, cycle, cycle_id)}
    if True in said and is_complete(cycle, cycle_id, legs):
        return CycleState.SETTLED
    return CycleState.VOID if said == {False} else CycleState.OPEN


def settled_ms(cycle: Cycle, cycle_id: bytes, verdicts: Iterable[CycleVerdict]) -> int:
    """From when a settled cycle counts, Unix milliseconds: when "complete" was first said."""
    known = (one for one in verdicts if is_verdict_of(one, cycle, cycle_id))
    return min(one.judged_ms for one in known if one.is_complete)


def judge(
    cycle: Cycle, cycle_id: bytes, legs: Iterable[Leg], *, said: CycleVerdict | None, now_ms: int
) -> CycleVerdict | None:
    """What the timekeeper of a cycle says when it is asked, and must keep before it says it; None for "not yet".

    `legs`: those that both their sides have signed. `said` is what it has said before: it never says another thing.
    """
    if said is not None:
        return said
    in_time = now_ms <= cycle.deadline_ms
    if in_time and not is_complete(cycle, cycle_id, legs):
        return None
    return CycleVerdict(cycle=cycle_id, timekeeper=cycle.timekeeper, is_complete=in_time, judged_ms=now_ms)
