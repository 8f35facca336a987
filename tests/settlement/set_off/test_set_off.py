"""Set-offs between two: nothing is counted twice, nobody gives up more than it gets, whatever the other side does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.desk.asks import KeepSetOffs
from p2pgrid.desk.set_offs import keep_set_offs, set_off_views
from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import set_off_to_state
from p2pgrid.proto.statement import PaymentKind
from p2pgrid.settlement.set_off.agree import verify_set_off, why_not_sign
from p2pgrid.settlement.set_off.claims import in_force, open_claims
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.settlement.set_off.propose import propose
from tests.factories import digest, make_card, secret_key, signed_by_names
from tests.settlement.set_off.rig import AT_MS, DAY_MS, Debt, Party, altered, left_to_pay, lines_of, open_cents, owes


def proposals(us: Party, them: Party, *, at_ms: int = AT_MS, **limits: Any) -> list[SetOff]:
    nonces = iter(range(1000))
    return propose(
        us.books.claims_between(us.operator.keys, them.operator.keys, at_ms=at_ms, ours=us.operator.keys),
        us.books.claims_between(them.operator.keys, us.operator.keys, at_ms=at_ms, ours=us.operator.keys),
        us=us.operator,
        them=them.operator,
        now_ms=at_ms,
        until_ms=at_ms + 7 * DAY_MS,
        make_nonce=lambda: digest(f"nonce {at_ms} {next(nonces)}"),
        **limits,
    )


async def kept(party: Party, *signed: Signed[Any], at_ms: int = AT_MS) -> None:
    await keep_set_offs(party.ledger, [party.key], KeepSetOffs(lines=lines_of(signed)), at_ms)


async def proposed(us: Party, them: Party, **limits: Any) -> list[Signed[SetOff]]:
    """Proposed by us, and on record with both."""
    signed = [signed_by_names(one, [us.key]) for one in proposals(us, them, **limits)]
    for party in (us, them):
        await kept(party, *signed)
    return signed


async def agreed(us: Party, them: Party, signed: Signed[SetOff]) -> Signed[SetOff]:
    """Signed by them, if they should; on record with both."""
    assert why_not_sign(signed, them.books, them.operator, now_ms=AT_MS) == []
    both = signed_by_names(signed.message, [us.key, them.key])
    for party in (us, them):
        await kept(party, both)
    return both


async def two() -> tuple[Party, Party, Debt, Debt]:
    """The second owes the first 40.00, the first owes the second 12.40."""
    a, b = Party("a"), Party("b")
    return a, b, await owes(b, a, 4000), await owes(a, b, 1240)


# -- any amounts ---------------------------------------------------------------------------------------------------

invoices = st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 30)), min_size=1, max_size=4)
channels = st.lists(invoices, min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(channels, channels, st.one_of(st.none(), st.integers(1, 20_000)))
def test_any_set_off_leaves_both_balances_right(ours: Any, theirs: Any, most: int | None) -> None:
    async def run() -> None:
        a, b = Party("a"), Party("b")
        debts: dict[str, list[Debt]] = {"a": [], "b": []}
        for side, (seller, buyer), sums in (("a", (a, b), ours), ("b", (b, a), theirs)):
            for n, of_channel in enumerate(sums):
                debt = await owes(buyer, seller, name=f"{side} {n}")
                for cents, days in of_channel:
                    await debt.invoiced(cents, due_days=days)
                debts[side].append(debt)
        owed = {side: open_cents(a, debts[side]) for side in "ab"}
        assert owed == {
            side: sum(cents for of_channel in sums for cents, _ in of_channel)
            for side, sums in (("a", ours), ("b", theirs))
        }
        signed = await proposed(a, b, most_cents=most)
        expected = min(*owed.values(), *([most] if most is not None else []))
        assert sum(one.message.amount_cents for one in signed) == expected
        # What is proposed is held to be given away, by whoever proposed it.
        assert {side: open_cents(a, debts[side]) for side in "ab"} == {s: c - expected for s, c in owed.items()}
        assert {side: open_cents(b, debts[side]) for side in "ab"} == owed
        for one in signed:
            await agreed(a, b, one)
        for party in (a, b):
            assert {side: open_cents(party, debts[side]) for side in "ab"} == {s: c - expected for s, c in owed.items()}
            for side in "ab":
                off = 0
                for debt in debts[side]:
                    taken = in_force(party.ledger, debt.channel.message.channel)
                    stated = set_off_to_state(taken, stated_ms=AT_MS, counted_cents=0)
                    assert set_off_to_state(taken, stated_ms=AT_MS, counted_cents=stated) == 0, "not counted again"
                    assert stated <= sum(one.message.gross_cents for one in debt.invoices)
                    off += stated
                assert off == expected
        if most is None:
            with pytest.raises(UsageError, match="nothing to set off"):
                proposals(a, b)

    asyncio.run(run())


async def test_the_oldest_come_first_and_what_is_not_due_can_wait() -> None:
    a, b = Party("a"), Party("b")
    debt = await owes(b, a)
    late = await debt.invoiced(500, due_days=30)
    early = await debt.invoiced(300, due_days=5)
    await owes(a, b, 400)
    (one,) = proposals(a, b)
    side = next(side for side in (one.first, one.second) if side.channel == debt.channel.message.channel)
    assert {c.invoice_number: c.cents for c in side.claims} == {
        early.message.invoice_number: 300,
        late.message.invoice_number: 100,
    }
    (due,) = proposals(a, b, due_by_ms=AT_MS)
    assert due.amount_cents == 300


async def test_more_invoices_than_one_record_holds() -> None:
    a, b = Party("a"), Party("b")
    debt = await owes(b, a, *([10] * 40))
    await owes(a, b, 400)
    made = proposals(a, b)
    assert [one.amount_cents for one in made] == [320, 80]
    await kept(a, *(signed_by_names(one, [a.key]) for one in made))
    assert open_cents(a, [debt]) == 0


async def test_what_others_propose_holds_up_nothing() -> None:
    """A proposal for all that is owed, to be signed in a hundred years."""
    a, b, owed, owing = await two()
    (made,) = proposals(b, a)
    changed = msgspec.structs.replace(made, until_ms=AT_MS + 36_500 * DAY_MS, nonce=digest("long"))
    long = signed_by_names(changed, [b.key])
    await kept(a, long)
    assert (open_cents(a, [owed]), open_cents(a, [owing])) == (4000, 1240)
    await agreed(a, b, (await proposed(a, b))[0])
    assert "are open, and" in why_not_sign(long, a.books, a.operator, now_ms=AT_MS)[0]


async def test_payments_credit_notes_and_money_ahead_are_not_set_off() -> None:
    a, b, owed, owing = await two()
    await owed.paid(0, 3000)
    await owed.invoiced(-200)
    await owing.paid(0, 40, statement=b"", invoice_number="", reference="AHEAD")
    assert (open_cents(a, [owed]), open_cents(a, [owing])) == (800, 1200)
    (one,) = proposals(a, b)
    assert one.amount_cents == 800
    await owed.paid(0, -3000, kind=PaymentKind.RETURNED)
    assert open_cents(a, [owed]) == 3800


# -- the other side ------------------------------------------------------------------------------------------------


async def test_agreed_by_both_and_shown() -> None:
    a, b, owed, owing = await two()
    (half,) = await proposed(a, b)
    views = [set_off_views(p.books, p.operator, refused=(), now_ms=AT_MS)[0] for p in (a, b)]
    assert [view.state for view in views] == ["waits-for-them", "waits-for-us"]
    assert views[0].ours.invoices == ({"invoice_number": owed.invoices[0].message.invoice_number, "cents": 1240},)
    both = await agreed(a, b, half)
    for party in (a, b):
        (view,) = set_off_views(party.books, party.operator, refused=(), now_ms=AT_MS + 99 * DAY_MS)
        assert (view.state, view.id, view.amount_cents) == ("in-force", both.id.hex(), 1240)
        assert (open_cents(party, [owed]), open_cents(party, [owing])) == (2760, 0)
        assert (left_to_pay(party, owed), left_to_pay(party, owing)) == ([2760], [0]), "the payment is the difference"


async def test_one_side_s_denial_costs_the_other_nothing() -> None:
    """Never signed, it is not in force, and after its day what it promised is free again."""
    a, b, owed, owing = await two()
    (half,) = await proposed(a, b)
    assert left_to_pay(a, owed) == left_to_pay(b, owed) == [4000], "debts are paid as if it were not there"
    assert in_force(a.ledger, owed.channel.message.channel) == []
    assert open_cents(a, [owed, owing]) == 4000 - 1240
    later_ms = half.message.until_ms + 120_001
    assert open_cents(a, [owed, owing], later_ms) == 5240
    (again,) = proposals(a, b, at_ms=later_ms)
    assert again.amount_cents == 1240
    (reason,) = why_not_sign(half, b.books, b.operator, now_ms=later_ms)
    assert "have it proposed again" in reason
    assert set_off_views(a.books, a.operator, refused=(), now_ms=later_ms)[0].state == "lapsed"
    assert set_off_views(b.books, b.operator, refused={half.id}, now_ms=AT_MS)[0].state == "refused"


async def test_a_replay_changes_nothing() -> None:
    a, b, owed, owing = await two()
    both = await agreed(a, b, (await proposed(a, b))[0])
    for _ in range(2):
        for party in (a, b):
            await kept(party, both, at_ms=AT_MS + 300 * DAY_MS)
            assert len(party.ledger.settlement(SetOff, owed.channel.message.channel)) == 1
            assert (open_cents(party, [owed]), open_cents(party, [owing])) == (2760, 0)


async def test_other_amounts_under_the_same_nonce() -> None:
    a, b, _, _ = await two()
    (half,) = await proposed(a, b)
    less = half.message
    smaller = SetOff(
        first=_of_cents(less.first, 5),
        second=_of_cents(less.second, 5),
        currency="EUR",
        amount_cents=5,
        agreed_ms=less.agreed_ms,
        until_ms=less.until_ms,
        nonce=less.nonce,
    )
    with pytest.raises(SlotTaken):
        await kept(b, signed_by_names(smaller, [a.key]))


def _of_cents(side: Any, cents: int) -> Any:
    (claim,) = side.claims
    claims = (type(claim)(statement=claim.statement, invoice_number=claim.invoice_number, cents=cents),)
    return type(side)(channel=side.channel, creditor=side.creditor, debtor=side.debtor, card=b"", claims=claims)


async def test_altered_stranger_s_and_unsigned_copies_are_refused() -> None:
    a, b, owed, _ = await two()
    (half,) = [signed_by_names(one, [a.key]) for one in proposals(a, b)]
    known = {owed.channel.message.channel: owed.channel.message}
    more = altered(half, until_ms=half.message.until_ms + 1)
    stranger = secret_key("stranger")
    role = next(role for role in (Role.PROVIDER, Role.CLIENT) if role not in half.signers)
    forged = half.countersigned(role, stranger)
    alone = sign_message(half.message, role, stranger)
    bare = type(half)(half.message, type(half.record)(half.record.payload_type, half.record.payload, ()), half.id, {})
    for wrong, code in (
        (more, "bad-signature"),
        (forged, "wrong-key"),
        (alone, "wrong-key"),
        (bare, "signature-missing"),
    ):
        with pytest.raises(InvalidRecord) as refused:
            verify_set_off(wrong.record, known)
        assert refused.value.code == code
        with pytest.raises(UsageError, match=code):
            await kept(b, wrong)
    with pytest.raises(InvalidRecord) as refused:
        verify_set_off(half.record, {})
    assert refused.value.code == "record-missing"
    assert b.ledger.settlement(SetOff, owed.channel.message.channel) == []


async def test_what_should_not_be_signed() -> None:
    a, b, owed, owing = await two()
    (half,) = await proposed(a, b)

    def reasons(party: Party = b, at_ms: int = AT_MS, books: AllBooks | None = None) -> str:
        return " ".join(why_not_sign(half, books or party.books, party.operator, now_ms=at_ms))

    assert reasons() == ""
    assert "dated in the future" in reasons(at_ms=AT_MS - 120_001)
    assert "none of our ledgers" in reasons(books=AllBooks([]))
    assert "creditor of neither" in reasons(Party("c"))
    await owing.paid(0, 241)
    assert "9.99 are open, and 12.40 are to be taken off" in reasons()
    for _ in range(2):
        await owed.invoiced(100, stated_ms=AT_MS + DAY_MS * len(owed.statements))
    assert "Two statements were made" in reasons()


async def test_a_debt_of_somebody_else_is_not_taken_for_ours() -> None:
    """The other side offers to forgive what a third party owes it."""
    a, b, c = Party("a"), Party("b"), Party("c")
    owed, third = await owes(b, a, 500), await owes(c, b, 500)
    await a.has(third.channel, third.statements[0], third.invoices[0])
    card = digest("card")
    made = propose(
        a.books.claims_between(b.operator.keys, c.operator.keys, at_ms=AT_MS, ours=frozenset()),
        a.books.claims_between(a.operator.keys, b.operator.keys, at_ms=AT_MS, ours=frozenset()),
        us=Operator(b.operator.keys | c.operator.keys, (_chain_of(b, c),)),
        them=Operator(a.operator.keys | c.operator.keys, (_chain_of(a, c),)),
        now_ms=AT_MS,
        until_ms=AT_MS + DAY_MS,
        make_nonce=lambda: card,
    )
    half = signed_by_names(made[0], [b.key])
    assert any("not owed by us" in one for one in why_not_sign(half, a.books, a.operator, now_ms=AT_MS))
    assert owed.invoices


def _chain_of(*parties: Party) -> list[Any]:
    from p2pgrid.proto.card import PeerKey

    term = {"valid_from_ms": 0, "valid_until_ms": AT_MS + 300 * DAY_MS}
    return [make_card(peers=tuple(PeerKey(key=one.key.public_key.raw, **term) for one in parties))]


async def test_what_is_promised_once_is_not_promised_again() -> None:
    """Two commands that looked at the same books at once."""
    a, b, owed, _ = await two()
    first, second = (
        signed_by_names(one, [a.key]) for at_ms in (AT_MS, AT_MS + 1) for one in proposals(a, b, at_ms=at_ms)
    )
    await kept(a, first)
    with pytest.raises(UsageError, match="are open, and"):
        await kept(a, second)
    with pytest.raises(UsageError, match="are open, and"):
        await kept(b, *(signed_by_names(one.message, [b.key]) for one in (first, second)))
    assert len(a.ledger.settlement(SetOff, owed.channel.message.channel)) == 1
    assert b.ledger.settlement(SetOff, owed.channel.message.channel) == [], "all or nothing"


async def test_a_late_second_signature_is_kept_and_is_on_account() -> None:
    """The invoices were paid meanwhile: nobody has lost a cent."""
    a, b, owed, owing = await two()
    (half,) = await proposed(a, b)
    await owing.paid(0, 1240)
    await owed.paid(0, 4000)
    both = signed_by_names(half.message, [a.key, b.key])
    await kept(a, both, at_ms=half.message.until_ms + 99 * DAY_MS)
    await owed.invoiced(2000)
    await owing.invoiced(2000)
    assert (open_cents(a, [owed]), open_cents(a, [owing])) == (760, 760)
    assert sum(left_to_pay(a, owed)) == sum(left_to_pay(a, owing)) == 760


# -- an operator of two keys ---------------------------------------------------------------------------------------


async def test_who_sells_and_buys_with_two_keys_names_its_card() -> None:
    seller, buyer, other = Party("seller"), Party("buyer"), Party("other")
    owed, owing = await owes(other, seller, 700), await owes(buyer, other, 300)
    chain = _chain_of(seller, buyer)
    us = Operator.of([seller.key.public_key.raw], [chain])
    assert us.keys == {seller.key.public_key.raw, buyer.key.public_key.raw}
    books = AllBooks([seller.ledger, buyer.ledger])
    claims = (
        books.claims_between(us.keys, other.operator.keys, at_ms=AT_MS, ours=us.keys),
        books.claims_between(other.operator.keys, us.keys, at_ms=AT_MS, ours=us.keys),
    )
    terms: dict[str, Any] = {"now_ms": AT_MS, "until_ms": AT_MS + DAY_MS, "make_nonce": lambda: digest("nonce")}
    (made,) = propose(*claims, us=us, them=other.operator, **terms)
    cards = {side.channel: side.card for side in made.sides}
    assert cards == {owed.channel.message.channel: chain[0].id, owing.channel.message.channel: b""}
    half = signed_by_names(made, [seller.key])
    for party in (seller, buyer, other):
        await kept(party, half)
    assert why_not_sign(half, other.books, other.operator, now_ms=AT_MS) == []
    both = signed_by_names(made, [seller.key, other.key])
    for party in (seller, buyer, other):
        await kept(party, both)
    assert open_cents(seller, [owed]) == open_cents(other, [owed]) == 400
    assert open_cents(buyer, [owing]) == open_cents(other, [owing]) == 0
    two_keys = Operator(us.keys, ())
    with pytest.raises(UsageError, match="no card names both"):
        propose(*claims, us=two_keys, them=other.operator, **terms)


async def test_without_debts_both_ways_there_is_nothing_to_set_off() -> None:
    a, b = Party("a"), Party("b")
    await owes(b, a, 500)
    with pytest.raises(UsageError, match="nothing to set off"):
        proposals(a, b)
    assert open_claims(a.ledger, (await owes(a, b)).channel.message, at_ms=AT_MS, ours=()) == []
