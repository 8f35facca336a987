"""Set-offs and cycles over the exchange: whoever has which record when, both sides state the same, and never stop."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.record import PARTIES, Role, Signed, parse_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import is_in_force
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.settlement.set_off.claims import in_force
from p2pgrid.settlement.statements.position import read_books
from p2pgrid.settlement.statements.refused import NotStated
from tests.factories import (
    CLIENT,
    DAY_MS,
    PROVIDER,
    Dealings,
    digest,
    make_channel,
    make_cycle,
    make_invoice,
    make_legs,
    make_set_off,
    make_statement,
    make_verdict,
    secret_key,
    set_off_side,
    signed_by_names,
)
from tests.settlement.statements.two_sides import STEPS, CutOff, Sides, later

BACK = make_channel(CLIENT, PROVIDER, name="back")
"""What the provider owes the client: settled elsewhere, and on neither ledger here."""
KEYS = {Role.PROVIDER: PROVIDER, Role.CLIENT: CLIENT}
BUY, PROPOSE, ACCEPT, PAY, SETTLE, WAIT, CRASH, TELL = range(8)


@dataclass
class Mutual(Sides):
    """Its two operators set off, too. Each writes to its own ledger; the rest is the exchange's."""

    made: list[Signed[SetOff]] = field(default_factory=list)
    invoiced: dict[bytes, Signed[Invoice]] = field(default_factory=dict)
    is_fair: bool = True
    """False: whoever accepts does so as late as it likes."""

    def ledger(self, role: Role) -> MemoryLedger:
        return self.provider if role is Role.PROVIDER else self.client

    async def propose(self, by: Role, cents: int) -> None:
        """Off the invoice of a statement that has some left."""
        off = sum(one.message.amount_cents for one in self.made)
        for statement in self.ledger(by).settlement(Statement, self.channel):
            if not set(PARTIES) <= set(statement.signers):
                continue
            off -= statement.message.gross_cents
            if off >= 0:
                continue
            invoice = self.invoiced.get(statement.id)
            if invoice is None:
                invoice = make_invoice(statement, invoice_number=f"N{statement.message.statement_number}")
                self.invoiced[statement.id] = invoice
                await self.provider.append(invoice)
            cents = min(cents, -off)
            sides = set_off_side(self.dealings.channel, (invoice, cents)), set_off_side(BACK, (invoice, cents))
            nonce = digest(f"nonce {len(self.made)}")
            signed = make_set_off(*sides, [KEYS[by]], agreed_ms=self.now_ms, nonce=nonce)
            self.made.append(signed)
            await self.ledger(by).append(signed)
            return

    async def accept(self, by: Role) -> None:
        """All that wait for this side, as `p2pgrid set-off accept` would."""
        for one in self.ledger(by).settlement(SetOff, self.channel):
            if is_in_force(one) or (self.is_fair and not self.may_sign(one, by)):
                continue
            for role in PARTIES:
                if one.record.signature_of(role) is None and self.signer(one, role) == KEYS[by].public_key.raw:
                    await self.ledger(by).append(one.countersigned(role, KEYS[by]))

    @staticmethod
    def signer(one: Signed[SetOff], role: Role) -> bytes:
        return one.message.sides[PARTIES.index(role)].creditor

    def may_sign(self, one: Signed[SetOff], by: Role) -> bool:
        stated = {s.message.statement_number: s.message for s in self.ledger(by).settlement(Statement, self.channel)}
        if by is Role.CLIENT:
            for draft in (parse_message(record, Statement) for record in self.agreed.drafts()):
                stated.setdefault(draft.statement_number, draft)
        since = sum(statement.stated_ms > one.message.agreed_ms for statement in stated.values())
        return since <= 1 and self.now_ms <= one.message.until_ms

    def taken_off(self) -> list[int]:
        """What is in force, by both sides' ledgers."""
        ours, theirs = (in_force(ledger, self.channel) for ledger in (self.client, self.provider))
        assert ours == theirs
        return [one.cents for one in ours]


ROLES = st.sampled_from(PARTIES)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just(BUY), st.integers(10_000, 5_000_000)),
        st.tuples(st.just(PROPOSE), ROLES, st.integers(1, 400)),
        st.tuples(st.just(ACCEPT), ROLES),
        st.tuples(st.just(PAY), st.integers(1, 300)),
        st.tuples(st.just(SETTLE), st.integers(1, STEPS)),
        st.tuples(st.just(WAIT), st.sampled_from([0.0, 0.01, 1.0, 31.0])),
        st.tuples(st.just(CRASH)),
        st.tuples(st.just(TELL)),
    ),
    max_size=24,
)


async def act(sides: Mutual, action: tuple) -> None:  # type: ignore[type-arg]
    match action:
        case (0, tokens):
            await sides.buy(tokens=tokens)
        case (1, by, cents):
            await sides.propose(by, cents)
        case (2, by):
            await sides.accept(by)
        case (3, cents):
            await sides.pay_ahead(cents)
        case (4, cut_after):
            with contextlib.suppress(CutOff, NotStated):
                assert await sides.settle(cut_after=cut_after) == []
        case (5, days):
            later(sides, days)
        case (6,):
            await sides.crash()
        case (7,):
            await sides.bring_together()


async def run_all(sides: Mutual, actions: list[tuple]) -> None:  # type: ignore[type-arg]
    await sides.begin()
    await sides.buy(tokens=5_000_000)
    assert await sides.settle() == []
    for action in actions:
        await act(sides, action)
    later(sides, 0.01)
    signed = await sides.settle_whole()
    assert not sides.evidence
    assert sum(one.message.set_off_cents for one in signed) == sum(sides.taken_off())
    owed = sum(one.message.gross_cents for one in signed)
    assert signed[-1].message.closing_cents == owed - sides.cents_paid - sum(sides.taken_off())
    if sides.is_fair:
        assert sides.faults() == []


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_both_state_what_is_set_off_whoever_signs_when(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    asyncio.run(run_all(Mutual(), actions))


@settings(max_examples=100, deadline=None)
@given(ACTIONS)
def test_a_signature_that_was_held_back_stops_nobody(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    """An audit may find it; statements go on."""
    asyncio.run(run_all(Mutual(is_fair=False), actions))


async def test_the_second_signature_comes_while_a_statement_is_half_signed() -> None:
    """The provider signed without it: the client signs that, and the next one counts it."""
    sides = Mutual()
    await sides.begin()
    await sides.buy(tokens=5_000_000)
    assert await sides.settle() == []
    await sides.propose(Role.PROVIDER, 100)
    await sides.bring_together()
    await sides.buy()
    with pytest.raises(CutOff):
        await sides.settle(cut_after=3)
    sides.agreed = type(sides.agreed)()  # the client has lost what it agreed to, and judges anew
    await sides.accept(Role.CLIENT)
    assert read_books(sides.provider, sides.dealings.channel).pending is not None
    assert await sides.settle() == []
    assert await sides.settle() == []
    assert [one.message.set_off_cents for one in sides.statements()] == [0, 0, 100]
    assert sides.faults() == []


async def test_what_one_side_alone_counts_is_named() -> None:
    sides = Mutual()
    await sides.begin()
    await sides.buy(tokens=5_000_000)
    assert await sides.settle() == []
    await sides.propose(Role.PROVIDER, 100)
    await sides.bring_together()
    await sides.accept(Role.CLIENT)
    await sides.buy()
    sides.now_ms += 1000
    found = {one.field: one for one in await sides.state()}  # not brought together before
    assert (found["set_off_cents"].client, found["set_off_cents"].provider) == ("100", "0")
    assert sides.made[0].id.hex()[:16] in found["set_off"].about and found["set_off"].client == "100 cents"
    assert await sides.settle() == []


THIRD, KEEPER = secret_key("third"), secret_key("timekeeper")


def cycle_of(sides: Sides) -> list[Signed[Cycle] | Signed[Leg] | Signed[CycleVerdict]]:
    """A cycle through the channel, each leg with each of its signatures, and both words of a lying timekeeper."""
    others = make_channel(THIRD, PROVIDER, name="second"), make_channel(CLIENT, THIRD, name="third")
    proposed_ms, deadline_ms = sides.now_ms, sides.now_ms + DAY_MS
    cycle = make_cycle([sides.dealings.channel, *others], PROVIDER, proposed_ms=proposed_ms, deadline_ms=deadline_ms)
    legs = {leg.message for leg in make_legs(cycle, [PROVIDER, CLIENT, THIRD])}
    halves = [
        signed_by_names(leg, [key])
        for leg in sorted(legs, key=lambda leg: leg.channel)
        for key in (PROVIDER, CLIENT, THIRD)
        if key.public_key.raw in (leg.creditor, leg.debtor)
    ]
    words = [
        make_verdict(cycle, KEEPER, judged_ms=deadline_ms - 1000),
        make_verdict(cycle, KEEPER, is_complete=False, judged_ms=deadline_ms + 1),
    ]
    return [cycle, *halves, *words]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), ROLES), max_size=20), st.booleans())
def test_a_cycle_is_in_the_same_state_on_both_sides(kept: list[tuple[int, Role]], is_half: bool) -> None:
    """Nine records, any of them here or there, also both words of a timekeeper that lies."""

    async def run() -> None:
        sides = Mutual()
        await sides.begin()
        await sides.buy(tokens=5_000_000)
        records = cycle_of(sides)
        for index, role in [(0, Role.PROVIDER), *kept]:
            await sides.ledger(role).append(records[index])
            if is_half:
                await sides.bring_together()
        later(sides, 2)
        if await sides.settle():  # a word whose cycle was not here goes over with the second exchange, as a client does
            assert await sides.settle() == []
        indexes = {index for index, _ in kept}
        is_settled = indexes >= {1, 2, 3, 4, 5, 6, 7}
        assert sides.taken_off() == ([500] if is_settled else [])
        assert sides.statements()[-1].message.set_off_cents == (500 if is_settled else 0)
        assert not sides.evidence

    asyncio.run(run())


async def test_a_set_off_with_other_parties_is_none_of_the_channel_s() -> None:
    """Planted before the channel was opened, by parties that it does not have: nothing is taken off."""
    sides = Mutual()
    dealings = Dealings()
    dealings.completed()
    invoice = make_invoice(make_statement(dealings.receipts, digest("root")))
    mallory, nobody = secret_key("mallory"), secret_key("nobody")
    own = set_off_side(make_channel(mallory, CLIENT, name="own"), (invoice, 500), card=digest("card"))
    lie = set_off_side(make_channel(nobody, secret_key("debtor")), (invoice, 500), card=digest("card"))
    planted = make_set_off(own, msgspec.structs.replace(lie, channel=sides.channel), [mallory, nobody])
    await sides.client.append(planted)
    assert in_force(sides.client, sides.channel) != [], "nothing is known of the channel yet"
    await sides.begin()
    assert in_force(sides.client, sides.channel) == []
    assert sides.client.settlement(SetOff, own.channel) != [], "of its own channel it is one"
