"""Cycles of three to six: all legs are in force, or none is, whoever learns of it when."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import CycleState, is_complete, judge, legs_of, settled_ms, state_of
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import PARTIES, Role, Signed
from p2pgrid.proto.set_off_rules import is_in_force, signer_keys, taken_off
from tests.factories import NOW_MS, digest, make_channel, make_cycle, make_legs, make_verdict, secret_key

SIZES = [3, 4, 5, 6]


def keys_of(size: int) -> list[SecretKey]:
    return [secret_key(f"party {n}") for n in range(size)]


def cycle_of(size: int) -> Signed[Cycle]:
    """Each party owes the next one; the last one the first."""
    keys = keys_of(size)
    debts = [make_channel(keys[(n + 1) % size], keys[n], name=f"debt {n}") for n in range(size)]
    return make_cycle(debts, keys[0], proposed_ms=NOW_MS, deadline_ms=NOW_MS + 1000)


def signed_by(cycle: Signed[Cycle], who: set[tuple[int, Role]]) -> list[Signed[Leg]]:
    """The legs with these signatures alone, by the debt's number."""
    keys = {key.public_key.raw: key for key in keys_of(len(cycle.message.debts))}
    made = []
    for n, leg in enumerate(legs_of(cycle.message, cycle.id)):
        signing = [keys[signer_keys(leg)[role]] for role in PARTIES if (n, role) in who]
        if signing:
            made += [one for one in make_legs(cycle, signing) if one.message == leg]
    return made


def of_both(legs: list[Signed[Leg]]) -> list[Leg]:
    return [leg.message for leg in legs if is_in_force(leg)]


def every(size: int) -> set[tuple[int, Role]]:
    return {(n, role) for n in range(size) for role in PARTIES}


CYCLES = {size: cycle_of(size) for size in SIZES}
CYCLE = CYCLES[3]
LEGS = list(legs_of(CYCLE.message, CYCLE.id))
YES = make_verdict(CYCLE, judged_ms=NOW_MS + 500).message
NO = make_verdict(CYCLE, is_complete=False, judged_ms=NOW_MS + 1001).message


@pytest.mark.parametrize(("size", "withheld"), [(size, one) for size in SIZES for one in sorted(every(size))])
def test_any_one_signature_withheld_and_it_is_void_for_all(size: int, withheld: tuple[int, Role]) -> None:
    cycle = CYCLES[size]
    legs = signed_by(cycle, every(size) - {withheld})
    both, channels = of_both(legs), [debt.channel for debt in cycle.message.debts]
    assert judge(cycle.message, cycle.id, both, said=None, now_ms=NOW_MS + 1000) is None
    late = judge(cycle.message, cycle.id, both, said=None, now_ms=NOW_MS + 1001)
    assert late is not None and not late.is_complete
    assert state_of(cycle.message, cycle.id, both, [late]) is CycleState.VOID
    # Nor does it help that the timekeeper lies.
    verdict = make_verdict(cycle)
    assert state_of(cycle.message, cycle.id, both, [verdict.message]) is CycleState.OPEN
    assert all(taken_off(channel, [], [cycle], legs, [verdict]) == [] for channel in channels)


@pytest.mark.parametrize("size", SIZES)
def test_signed_by_all_in_time_it_is_settled_for_all_alike(size: int) -> None:
    cycle = CYCLES[size]
    legs = signed_by(cycle, every(size))
    said = judge(cycle.message, cycle.id, of_both(legs), said=None, now_ms=NOW_MS + 1000)
    assert said is not None and said.is_complete
    verdict = make_verdict(cycle, judged_ms=said.judged_ms)
    owed = dict.fromkeys((key.public_key.raw for key in keys_of(size)), 0)
    for debt in cycle.message.debts:
        (taken,) = taken_off(debt.channel, [], [cycle], legs, [verdict])
        assert (taken.cents, taken.at_ms, taken.claims, taken.is_cycle) == (500, NOW_MS + 1000, (), True)
        owed[debt.debtor] -= taken.cents
        owed[debt.creditor] += taken.cents
    assert set(owed.values()) == {0}, "nobody is richer or poorer by a cent"


@settings(deadline=None)
@given(st.sets(st.sampled_from(sorted(every(3)))))
def test_whatever_is_signed_all_legs_have_one_outcome(who: set[tuple[int, Role]]) -> None:
    both = of_both(signed_by(CYCLE, who))
    early = judge(CYCLE.message, CYCLE.id, both, said=None, now_ms=NOW_MS + 1000)
    late = judge(CYCLE.message, CYCLE.id, both, said=early, now_ms=NOW_MS + 1001)
    assert late is not None
    state = state_of(CYCLE.message, CYCLE.id, both, [late])
    assert state is (CycleState.SETTLED if who == every(3) else CycleState.VOID)


def test_before_the_timekeeper_spoke_nothing_is_certain() -> None:
    def state(legs: list[Leg], *verdicts: CycleVerdict) -> CycleState:
        return state_of(CYCLE.message, CYCLE.id, legs, verdicts)

    assert state(LEGS) is CycleState.OPEN
    assert state(LEGS[1:], YES) is CycleState.OPEN, "its word does not stand for a signature"
    assert state(LEGS, msgspec.structs.replace(YES, timekeeper=bytes(33))) is CycleState.OPEN
    assert state(LEGS, msgspec.structs.replace(YES, cycle=digest("another"))) is CycleState.OPEN
    early = msgspec.structs.replace(NO, judged_ms=CYCLE.message.deadline_ms)
    assert state(LEGS, early) is CycleState.OPEN, "before the deadline nobody can say that it was not complete"


def test_too_late_is_void_and_stays_so() -> None:
    said = judge(CYCLE.message, CYCLE.id, LEGS, said=None, now_ms=NOW_MS + 1001)
    assert said == NO
    assert judge(CYCLE.message, CYCLE.id, LEGS, said=said, now_ms=1) == NO
    assert state_of(CYCLE.message, CYCLE.id, LEGS, [NO]) is CycleState.VOID


def test_a_timekeeper_that_says_both_settles_it_for_all() -> None:
    for verdicts in ([NO, YES], [YES, NO]):
        assert state_of(CYCLE.message, CYCLE.id, LEGS, verdicts) is CycleState.SETTLED
        assert settled_ms(CYCLE.message, CYCLE.id, verdicts) == YES.judged_ms


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(every(3))), st.integers(0, 2_000)), max_size=12), st.randoms())
def test_whoever_asks_whenever_hears_the_same(arrivals: list[tuple[tuple[int, Role], int]], rng: random.Random) -> None:
    """Signatures arrive one after another; the timekeeper is asked after each. Whatever it said first stands."""
    said: CycleVerdict | None = None
    signed: set[tuple[int, Role]] = set()
    heard: list[CycleVerdict] = []
    for one, later_ms in sorted(arrivals, key=lambda arrival: arrival[1]):
        signed.add(one)
        both = of_both(signed_by(CYCLE, signed))
        said = judge(CYCLE.message, CYCLE.id, both, said=said, now_ms=NOW_MS + later_ms)
        heard += [said] if said else []
    assert len(set(heard)) <= 1
    for _ in range(3):
        part = rng.sample(heard, min(len(heard), 2))
        whole = state_of(CYCLE.message, CYCLE.id, LEGS, heard)
        assert state_of(CYCLE.message, CYCLE.id, LEGS, part) in (CycleState.OPEN, whole)


def test_legs_that_do_not_belong() -> None:
    replace = msgspec.structs.replace
    assert is_complete(CYCLE.message, CYCLE.id, [*LEGS, LEGS[0]])
    for wrong in (
        LEGS[:2],
        [replace(LEGS[0], amount_cents=499), *LEGS[1:]],
        [replace(LEGS[0], debtor=LEGS[0].creditor, creditor=LEGS[0].debtor), *LEGS[1:]],
        [replace(LEGS[0], currency="SEK"), *LEGS[1:]],
        [replace(LEGS[0], cycle=digest("another")), *LEGS[1:]],
        [replace(LEGS[0], channel=digest("another")), *LEGS[1:]],
    ):
        assert not is_complete(CYCLE.message, CYCLE.id, wrong)
