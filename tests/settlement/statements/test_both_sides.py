"""Whatever happened, both sides come to the same statement or name what differs; and no number is signed twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.record import Signed
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.statements.refused import NotStated
from tests.settlement.statements.two_sides import STEPS, CutOff, Sides, later

BUY, PROPOSE, DISPUTE, ANSWER, PAY, SETTLE, WAIT, CRASH = range(8)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just(BUY), st.booleans(), st.integers(1, 5_000_000)),
        st.tuples(st.just(PROPOSE)),
        st.tuples(st.just(DISPUTE), st.integers(0, 30), st.integers(0, 4 * 10**12)),
        st.tuples(st.just(ANSWER), st.sampled_from(Decision)),
        st.tuples(st.just(PAY), st.integers(1, 100_000), st.integers(0, 200_000)),
        st.tuples(st.just(SETTLE), st.integers(1, STEPS), st.booleans()),
        st.tuples(st.just(WAIT), st.sampled_from([0.0, 0.01, 1.0, 31.0])),
        st.tuples(st.just(CRASH)),
    ),
    max_size=24,
)


async def act(sides: Sides, action: tuple) -> None:  # type: ignore[type-arg]
    match action:
        case (0, with_provider, tokens):
            await sides.buy(with_provider=with_provider, tokens=tokens)
        case (1,):
            await sides.buy(signed=False)
        case (2, index, owed):
            if sides.dealings.receipts:
                receipt = sides.dealings.receipts[index % len(sides.dealings.receipts)]
                await sides.dispute(receipt, owed)
        case (3, decision):
            await sides.answer(decision)
        case (4, cents, ago_ms):
            await sides.pay_ahead(cents, ago_ms=ago_ms)
        case (5, cut_after, is_wanted):
            with contextlib.suppress(CutOff, NotStated):
                assert await sides.settle(is_wanted=is_wanted, cut_after=cut_after) == []
        case (6, days):
            later(sides, days)
        case (7,):
            await sides.crash()


def says_something(before: Signed[Statement] | None, signed: Signed[Statement] | None) -> bool:
    """No rate of VAT changes here: then a statement that changes nothing is none."""
    assert signed is not None
    said = signed.message
    held_pico = before.message.held_pico if before is not None else 0
    moved = said.payments_cents, said.set_off_cents, said.credits_pico, said.held_pico - held_pico
    return said.last_receipt >= said.first_receipt or any(moved)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_both_come_to_the_same(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    async def run() -> None:
        sides = Sides()
        await sides.begin()
        for action in actions:
            await act(sides, action)
        for proposal in list(sides.dealings.receipts):
            if len(proposal.signers) == 1 and proposal.message.receipt_number not in sides.disputed():
                await sides.sign(proposal)
        later(sides, 0.01)
        signed = await sides.settle_whole()
        numbers = [one.message.statement_number for one in signed]
        assert numbers == list(range(1, len(numbers) + 1))
        assert not sides.evidence
        assert all(says_something(*pair) for pair in itertools.pairwise([None, *signed]))
        total = sum(one.message.gross_cents for one in signed)
        assert sum(one.message.payments_cents for one in signed) == sides.cents_paid
        if signed:
            assert signed[-1].message.last_receipt == len(sides.dealings.receipts)
            assert signed[-1].message.closing_cents == total - sides.cents_paid
        else:
            assert not sides.dealings.receipts
        if not sides.told_late:
            assert not sides.faults()

    asyncio.run(run())
