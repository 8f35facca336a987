"""Records of settlement that go over: each side gets what it lacks, and keeps nothing that is not sound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.cycle import Cycle
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Record, Role, Signed, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.settle_check import CHECKS, MOST_PROPOSED, Taken, check_taken
from p2pgrid.proto.settle_exchange import BEGIN, END, KINDS, compare, page_of, place_of, signers_of
from p2pgrid.proto.settle_listing import Listing
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.wire.base import MAX_COMPARED
from p2pgrid.proto.wire.settlement import MAX_SETTLED, HeldSettled, SettledPlace, SettlementHeld
from p2pgrid.settlement.set_off.claims import in_force
from tests.factories import (
    CLIENT,
    DAY_MS,
    NOW_MS,
    PROVIDER,
    Dealings,
    digest,
    make_channel,
    make_cycle,
    make_invoice,
    make_legs,
    make_payment,
    make_prepayment,
    make_set_off,
    make_verdict,
    resigned,
    secret_key,
    set_off_side,
    signed_by_names,
)
from tests.settlement.statements.parts import DictDetails, both_details, details_of
from tests.settlement.statements.two_sides import Sides, later


async def settled(statements: int = 2) -> Sides:
    """Statements with their invoices, the first one paid; all on the provider's side."""
    sides = Sides()
    await sides.begin()
    for number in range(statements):
        await sides.buy(tokens=1_000_000)
        assert await sides.settle() == []
        statement = sides.statements()[-1]
        invoice = make_invoice(statement, issued_ms=statement.message.stated_ms)
        await sides.provider.append(invoice)
        if not number:
            await sides.provider.append(make_payment(invoice, sides.channel, booked_ms=sides.now_ms))
    return sides


def held(ledger: MemoryLedger, channel: bytes) -> list[Signed[Any]]:
    listing = Listing(ledger, channel, (), now_ms=NOW_MS)
    return list(listing.read(listing.places))


async def test_both_come_to_hold_all_and_a_lost_ledger_gets_all_back() -> None:
    sides = await settled()
    await sides.bring_together()
    ours, theirs = held(sides.client, sides.channel), held(sides.provider, sides.channel)
    assert [one.id for one in ours] == [one.id for one in theirs] and len(ours) == 5
    whole = sides.provider
    for name in ("client", "provider"):
        empty = MemoryLedger()
        await empty.append(sides.dealings.offer, sides.dealings.channel)
        setattr(sides, name, empty)
        await sides.bring_together()
        assert [one.id for one in held(empty, sides.channel)] == [one.id for one in held(whole, sides.channel)]
        assert [set(one.signers) for one in held(empty, sides.channel)] == [set(one.signers) for one in theirs]
    assert not sides.evidence


def ids_of(details: DictDetails) -> dict[tuple[bytes, Role], bytes]:
    return {place: one.id for place, one in details.kept.items()}


async def test_details_go_both_ways_and_the_last_ones_count() -> None:
    sides = Sides()
    await sides.begin()
    await sides.bring_together()
    ours, theirs = sides.details
    for role, key in ((Role.PROVIDER, PROVIDER), (Role.CLIENT, CLIENT)):
        assert ours.of(key.public_key.raw, role) is not None
        assert theirs.of(key.public_key.raw, role) is not None
    ours.keep(details_of(Role.CLIENT, sequence=7, city="Alytus"))
    theirs.keep(details_of(Role.PROVIDER, sequence=3, city="Trakai"))
    await sides.bring_together()
    assert ids_of(ours) == ids_of(theirs)
    assert ours.kept[(CLIENT.public_key.raw, Role.CLIENT)].message.city == "Alytus"
    # A side that has an old version does not bring it back.
    ours.kept[(PROVIDER.public_key.raw, Role.PROVIDER)] = details_of(Role.PROVIDER)
    await sides.bring_together()
    assert ids_of(ours) == ids_of(theirs)


async def test_records_are_listed_as_they_are_without_being_read() -> None:
    sides = await settled(3)
    await sides.bring_together()
    for ledger in (sides.client, sides.provider):
        listing = Listing(ledger, sides.channel, both_details().kept.values(), now_ms=NOW_MS)
        assert list(listing.places) == sorted(listing.places) and len(listing.places) >= 9
        for at, signers in listing.places.items():
            (read,) = listing.read([at])
            assert (place_of(read), signers_of(read.signers)) == (at, signers)
    with pytest.raises(LedgerError, match="no more"):
        list(listing.read([SettledPlace(rank=4, place=1, id=bytes(32))]))


async def test_hundreds_go_in_several_exchanges() -> None:
    sides = Sides()
    await sides.begin()
    for _ in range(3 * MAX_SETTLED):
        await sides.pay_ahead(1)
    assert await sides.bring_together() >= 3
    assert len(sides.client.settlement(Payment, sides.channel)) == 3 * MAX_SETTLED
    empty = MemoryLedger()
    await empty.append(sides.dealings.offer, sides.dealings.channel)
    sides.provider = empty
    assert await sides.bring_together() >= 3
    assert len(empty.settlement(Payment, sides.channel)) == 3 * MAX_SETTLED
    for _ in range(MAX_COMPARED):
        await sides.pay_ahead(1)
    await sides.bring_together()
    ours, theirs = held(sides.client, sides.channel), held(sides.provider, sides.channel)
    assert [one.id for one in ours] == [one.id for one in theirs]
    assert await sides.bring_together() == 2


PAID = [
    make_prepayment(Dealings().id, reference=f"R{n}", entry=digest(f"e{n}"), booked_ms=1_800_000_000_000 + n // 3)
    for n in range(400)
]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 399)), st.sets(st.integers(0, 399)))
def test_any_two_sets_become_one(ours: set[int], theirs: set[int]) -> None:
    client, provider = (dict.fromkeys(sorted(place_of(PAID[n]) for n in side), 1) for side in (ours, theirs))
    came, went, after, pages = set[bytes](), set[bytes](), BEGIN, 0
    while after < END:
        page = page_of(client, Dealings().id, after)
        compared, sent = compare(provider, page)
        assert len(page.held) <= MAX_COMPARED and max(len(sent), len(compared.lacks)) <= MAX_SETTLED
        came |= {at.id for at in sent}
        went |= set(compared.lacks)
        assert after < compared.until
        after, pages = compared.until, pages + 1
    assert came == {PAID[n].id for n in theirs - ours} and went == {PAID[n].id for n in ours - theirs}
    assert pages <= 2 + (len(ours | theirs)) // MAX_SETTLED * 2


def check(sides: Sides, *records: Record, own: Role = Role.CLIENT) -> Taken:
    ledger = sides.client if own is Role.CLIENT else sides.provider
    terms = sides.dealings.channel.message
    return check_taken(records, held(ledger, sides.channel), terms, own, now_ms=sides.now_ms)


async def test_a_statement_that_the_provider_alone_signed_is_not_kept_but_judged() -> None:
    sides = await settled(1)
    (statement,) = sides.statements()
    alone = sign_message(statement.message, Role.PROVIDER, PROVIDER)
    sides.client = MemoryLedger()
    await sides.client.append(sides.dealings.offer, sides.dealings.channel)
    taken = check(sides, alone.record)
    assert not taken.keep and [one.id for one in taken.to_judge] == [alone.id]
    assert [one.id for one in check(sides, statement.record).keep] == [statement.id]


Make = Callable[[Sides], Record]


def second_statement(sides: Sides) -> Record:
    statement = sides.statements()[0]
    other = resigned(statement, PROVIDER, Role.PROVIDER, due_ms=statement.message.due_ms + 1)
    return other.countersigned(Role.CLIENT, CLIENT).record


def second_invoice(sides: Sides) -> Record:
    (invoice,) = sides.provider.settlement(Invoice, sides.channel)
    return resigned(invoice, PROVIDER, Role.PROVIDER, document_sha256=digest("another")).record


def second_booking(sides: Sides) -> Record:
    (payment,) = sides.provider.settlement(Payment, sides.channel)
    return resigned(payment, PROVIDER, Role.PROVIDER, booked_ms=payment.message.booked_ms - 1).record


@pytest.mark.parametrize("make", [second_statement, second_invoice, second_booking])
async def test_what_contradicts_what_is_on_record_is_evidence(make: Make) -> None:
    sides = await settled(1)
    await sides.bring_together()
    taken = check(sides, make(sides))
    assert len(taken.conflicting) == 1 and not taken.keep and not taken.waiting


def without_statement(sides: Sides) -> Record:
    statement = sides.statements()[0]
    later = resigned(statement, PROVIDER, Role.PROVIDER, statement_number=9)
    return make_invoice(later, invoice_number="9").record


def of_another_sum(sides: Sides) -> Record:
    statement = sides.statements()[0]
    return make_invoice(statement, net_cents=statement.message.net_cents + 1).record


def payment_of_no_invoice(sides: Sides) -> Record:
    invoice = make_invoice(sides.statements()[0], invoice_number="none")
    return make_payment(invoice, sides.channel, booked_ms=sides.now_ms).record


@pytest.mark.parametrize("make", [without_statement, of_another_sum, payment_of_no_invoice])
async def test_what_fits_nothing_waits(make: Make) -> None:
    sides = await settled(1)
    record = make(sides)
    if make is not payment_of_no_invoice:
        record = Record(record.payload_type, record.payload, record.signatures)
    taken = check(sides, record)
    assert [one.id for one, _ in taken.waiting] == [record.id] and not taken.keep and not taken.conflicting


async def test_too_much_paid_for_an_invoice_waits() -> None:
    sides = await settled(1)
    await sides.bring_together()
    (invoice,) = sides.client.settlement(Invoice, sides.channel)
    again = make_payment(invoice, sides.channel, reference="AGAIN", entry=digest("again"), booked_ms=sides.now_ms)
    taken = check(sides, again.record)
    assert len(taken.waiting) == 1 and "are paid" in taken.waiting[0][1]


async def test_an_invoice_taken_back_and_made_again_is_kept_whole_or_not_at_all() -> None:
    sides = await settled(1)
    await sides.bring_together()
    (statement,) = sides.statements()
    message = statement.message
    back = make_invoice(
        statement,
        invoice_number="B",
        net_cents=-message.net_cents,
        vat_cents=message.net_cents - message.gross_cents,
        issued_ms=message.stated_ms + 1,
    )
    again = make_invoice(statement, invoice_number="C", issued_ms=message.stated_ms + 2)
    assert len(check(sides, back.record).waiting) == 1
    assert len(check(sides, back.record, again.record).keep) == 2


def by_the_client(sides: Sides) -> Record:
    (invoice,) = sides.provider.settlement(Invoice, sides.channel)
    return sign_message(invoice.message, Role.CLIENT, CLIENT).record


def by_a_stranger(sides: Sides) -> Record:
    return make_prepayment(sides.channel, booked_ms=sides.now_ms).record.with_signature(
        sign_message(details_of(Role.CLIENT).message, Role.PROVIDER, CLIENT).record.signatures[0]
    )


def of_another_channel(sides: Sides) -> Record:
    return make_prepayment(make_channel(name="another").message.channel, booked_ms=sides.now_ms).record


def of_another_kind(sides: Sides) -> Record:
    return sides.dealings.offer.record


def of_another_currency(sides: Sides) -> Record:
    return make_prepayment(sides.channel, booked_ms=sides.now_ms, currency="CHF").record


def of_tomorrow(sides: Sides) -> Record:
    return make_prepayment(sides.channel, booked_ms=sides.now_ms + 2 * DAY_MS).record


def of_another_party(sides: Sides) -> Record:
    details = details_of(Role.PROVIDER).message
    import msgspec

    return sign_message(msgspec.structs.replace(details, party=CLIENT.public_key.raw), Role.PROVIDER, PROVIDER).record


def statement_of_the_client_alone(sides: Sides) -> Record:
    return sign_message(sides.statements()[0].message, Role.CLIENT, CLIENT).record


BAD: dict[Make, str] = {
    by_the_client: "signature-missing",
    by_a_stranger: "wrong-key",
    of_another_channel: "",
    of_another_kind: "",
    of_another_currency: "payment-mismatch",
    of_tomorrow: "clock-skew",
    of_another_party: "",
    statement_of_the_client_alone: "signature-missing",
}


@pytest.mark.parametrize("make", BAD)
async def test_what_is_not_sound_ends_the_exchange(make: Make) -> None:
    sides = await settled(1)
    for own in (Role.CLIENT, Role.PROVIDER):
        with pytest.raises((InvalidRecord, ProtocolViolation)) as fault:
            check(sides, make(sides), own=own)
        code = BAD[make]
        assert isinstance(fault.value, InvalidRecord) is bool(code)
        assert getattr(fault.value, "code", "") == code


async def test_the_same_record_twice_and_too_many() -> None:
    sides = await settled(1)
    payment = make_prepayment(sides.channel, booked_ms=sides.now_ms).record
    with pytest.raises(ProtocolViolation, match="twice"):
        check(sides, payment, payment)
    with pytest.raises(ProtocolViolation, match="at most"):
        check_taken([payment] * 8193, [], sides.dealings.channel.message, Role.CLIENT, now_ms=sides.now_ms)


def place(n: int) -> SettledPlace:
    return SettledPlace(rank=5, place=n, id=digest(str(n)))


@pytest.mark.parametrize(
    ("after", "until", "places"),
    [
        (BEGIN, END, [3, 2]),
        (BEGIN, END, [2, 2]),
        (place(5), END, [3]),
        (BEGIN, place(2), [3]),
        (END, END, []),
        (place(3), place(2), []),
    ],
)
def test_lists_out_of_order_or_range(after: SettledPlace, until: SettledPlace, places: Sequence[int]) -> None:
    theirs = SettlementHeld(
        channel=bytes(32),
        after=after,
        until=until,
        held=tuple(HeldSettled(at=place(n), signers=1) for n in places),
    )
    with pytest.raises(ProtocolViolation):
        compare({}, theirs)


def test_every_kind_has_its_check_in_the_order_of_the_ranks() -> None:
    assert [kind.message_type for kind in KINDS.values()] == list(CHECKS)
    assert {BillingDetails, Statement, Invoice, Payment} <= set(CHECKS) and Offer not in CHECKS
    assert asyncio.iscoroutinefunction(Sides.settle)


# -- set-offs and cycles ---------------------------------------------------------------------------------------------

BACK = make_channel(CLIENT, PROVIDER, name="back")
THIRD = secret_key("third")


def set_off_of(sides: Sides, keys: Sequence[Any] = (PROVIDER, CLIENT), *, cents: int = 1, **changes: Any) -> Any:
    statement = sides.statements()[0]
    invoice = make_invoice(statement)
    given = {"agreed_ms": sides.now_ms, **changes}
    one, other = (set_off_side(channel, (invoice, cents)) for channel in (sides.dealings.channel, BACK))
    return make_set_off(one, other, keys, **given)


def cycle_of(sides: Sides, **changes: Any) -> Signed[Cycle]:
    others = make_channel(THIRD, PROVIDER, name="second"), make_channel(CLIENT, THIRD, name="third")
    given = {"proposed_ms": sides.now_ms, "deadline_ms": sides.now_ms + DAY_MS, **changes}
    return make_cycle([sides.dealings.channel, *others], PROVIDER, **given)


@pytest.mark.parametrize("keys", [[PROVIDER], [CLIENT], [PROVIDER, CLIENT]])
async def test_a_set_off_is_kept_with_one_signature_and_with_both(keys: list[Any]) -> None:
    sides = await settled(1)
    for own in (Role.CLIENT, Role.PROVIDER):
        (kept,) = check(sides, set_off_of(sides, keys).record, own=own).keep
        assert len(kept.signers) == len(keys)


async def test_a_signature_that_was_lacking_goes_over_alone() -> None:
    sides = await settled(1)
    await sides.provider.append(set_off_of(sides, [PROVIDER]))
    await sides.client.append(set_off_of(sides, [CLIENT]))
    await sides.bring_together()
    for ledger in (sides.client, sides.provider):
        (one,) = ledger.settlement(SetOff, sides.channel)
        assert set(one.signers) == {Role.PROVIDER, Role.CLIENT}


async def test_a_cycle_with_its_legs_and_its_timekeepers_word_goes_over_in_order() -> None:
    sides = await settled(1)
    cycle = cycle_of(sides)
    legs = make_legs(cycle, [PROVIDER, CLIENT, THIRD])
    verdict = make_verdict(cycle, judged_ms=sides.now_ms)
    taken = check(sides, verdict.record, *(leg.record for leg in legs), cycle.record)
    assert taken.keep[0].id == cycle.id and len(taken.keep) == 5 and not taken.waiting
    for record in (verdict.record, legs[0].record):
        assert len(check(sides, record).waiting) == 1, "its cycle is not here"


NOT_KEPT: dict[str, tuple[Callable[[Sides], Any], str]] = {
    "a lapsed proposal": (lambda s: set_off_of(s, [PROVIDER], agreed_ms=NOW_MS - 30 * DAY_MS), "last day is over"),
    "of tomorrow": (lambda s: set_off_of(s, agreed_ms=s.now_ms + DAY_MS), "in the future"),
    "a cycle of tomorrow": (lambda s: cycle_of(s, proposed_ms=s.now_ms + DAY_MS - 1), "in the future"),
}


@pytest.mark.parametrize("name", NOT_KEPT)
async def test_what_may_become_sound_waits(name: str) -> None:
    sides = await settled(1)
    make, words = NOT_KEPT[name]
    taken = check(sides, make(sides).record)
    assert not taken.keep and not taken.conflicting and words in taken.waiting[0][1]


async def test_proposals_without_end_are_not_kept_and_what_is_in_force_is() -> None:
    sides = await settled(1)
    await sides.provider.append(
        *(set_off_of(sides, [PROVIDER], nonce=digest(f"n{n}")) for n in range(MOST_PROPOSED)),
    )
    await sides.bring_together()
    assert len(sides.client.settlement(SetOff, sides.channel)) == MOST_PROPOSED
    more = set_off_of(sides, [PROVIDER], nonce=digest("more"))
    assert len(check(sides, more.record).waiting) == 1
    assert len(check(sides, set_off_of(sides, nonce=digest("more")).record).keep) == 1
    assert len(check(sides, set_off_of(sides, nonce=digest("n0")).record).keep) == 1
    later(sides, 9)
    assert len(check(sides, set_off_of(sides, [PROVIDER], nonce=digest("n1")).record).conflicting) == 1


RIVALS: list[Callable[[Sides], list[Any]]] = [
    lambda s: [set_off_of(s), set_off_of(s, cents=2)],
    lambda s: [cycle_of(s), cycle_of(s, amount_cents=7)],
    lambda s: [
        cycle_of(s),
        *(make_verdict(cycle_of(s), judged_ms=s.now_ms + n) for n in range(2)),
    ],
]


@pytest.mark.parametrize("make", RIVALS)
async def test_the_second_in_a_slot_is_evidence(make: Callable[[Sides], list[Any]]) -> None:
    sides = await settled(1)
    *kept, rival = make(sides)
    await sides.client.append(*kept)
    taken = check(sides, rival.record)
    assert [record.id for record, _ in taken.conflicting] == [rival.id] and not taken.keep


def stranger_signs(sides: Sides) -> Record:
    right = set_off_of(sides, [PROVIDER])
    return right.countersigned(Role.CLIENT, THIRD).record


def nobody_signs(sides: Sides) -> Record:
    right = set_off_of(sides, [PROVIDER]).record
    return Record(right.payload_type, right.payload, ())


def other_debtor(sides: Sides) -> Record:
    one, other = set_off_of(sides).message.sides
    own, back = (one, other) if one.channel == sides.channel else (other, one)
    wrong = msgspec.structs.replace(own, debtor=THIRD.public_key.raw)
    return make_set_off(wrong, msgspec.structs.replace(back, card=digest("card")), [PROVIDER, CLIENT]).record


def other_channels(sides: Sides) -> Record:
    invoice = make_invoice(sides.statements()[0])
    elsewhere = make_channel(PROVIDER, CLIENT, name="elsewhere")
    one, other = (set_off_side(channel, (invoice, 1)) for channel in (elsewhere, BACK))
    return make_set_off(one, other, [PROVIDER, CLIENT], agreed_ms=sides.now_ms).record


def cycle_of_others(sides: Sides) -> Record:
    fourth = secret_key("fourth")
    names = [(THIRD, PROVIDER), (fourth, THIRD), (PROVIDER, fourth)]
    channels = [make_channel(seller, buyer, name=f"{n}") for n, (seller, buyer) in enumerate(names)]
    return make_cycle(channels, PROVIDER, proposed_ms=sides.now_ms, deadline_ms=sides.now_ms + 1).record


UNSOUND: dict[Make, str] = {
    stranger_signs: "wrong-key",
    nobody_signs: "signature-missing",
    other_debtor: "set-off-mismatch",
    other_channels: "",
    cycle_of_others: "",
    lambda s: set_off_of(s, currency="CHF").record: "set-off-mismatch",
    lambda s: cycle_of(s, currency="CHF").record: "set-off-mismatch",
}


@pytest.mark.parametrize("make", UNSOUND)
async def test_a_set_off_that_is_not_sound_ends_the_exchange(make: Make) -> None:
    sides = await settled(1)
    for own in (Role.CLIENT, Role.PROVIDER):
        with pytest.raises((InvalidRecord, ProtocolViolation)) as fault:
            check(sides, make(sides), own=own)
        assert getattr(fault.value, "code", "") == UNSOUND[make]


async def test_a_leg_and_a_word_that_are_not_the_cycle_s() -> None:
    sides = await settled(1)
    cycle = cycle_of(sides)
    await sides.client.append(cycle)
    leg = make_legs(cycle, [PROVIDER])[0].message
    dearer = signed_by_names(msgspec.structs.replace(leg, amount_cents=leg.amount_cents + 1), [PROVIDER])
    early = make_verdict(cycle, is_complete=False, judged_ms=sides.now_ms)
    for one in (dearer, early, make_verdict(cycle, THIRD, judged_ms=sides.now_ms)):
        with pytest.raises(InvalidRecord) as fault:
            check(sides, one.record)
        assert fault.value.code == "set-off-mismatch"


def lapsed_proposals(sides: Sides, n: int) -> Any:
    """As old as it may be that it is kept: in a moment it is listed no more."""
    until_ms = sides.now_ms - DAY_MS + 1
    nonce = digest(f"lapsed {n}")
    return set_off_of(sides, [PROVIDER], agreed_ms=until_ms - DAY_MS, until_ms=until_ms, nonce=nonce)


def lapsed_cycles(sides: Sides, n: int) -> Any:
    deadline_ms = sides.now_ms - 40 * DAY_MS
    return cycle_of(sides, proposed_ms=deadline_ms - DAY_MS, deadline_ms=deadline_ms, nonce=digest(f"lapsed {n}"))


@pytest.mark.parametrize("make", [lapsed_proposals, lapsed_cycles])
async def test_what_is_listed_no_more_is_not_kept_without_end(make: Callable[[Sides, int], Any]) -> None:
    sides = await settled(1)
    kind = type(make(sides, 0).message)
    for first in range(0, 6 * MOST_PROPOSED, MOST_PROPOSED):
        records = [make(sides, n).record for n in range(first, first + MOST_PROPOSED)]
        listing = Listing(sides.client, sides.channel, (), now_ms=sides.now_ms)
        listed = list(listing.read(listing.places))
        terms = sides.dealings.channel.message
        taken = check_taken(records, listed, terms, Role.CLIENT, now_ms=sides.now_ms, left_out=listing.left_out)
        assert len(taken.keep) + len(taken.waiting) == MOST_PROPOSED
        if taken.keep:
            await sides.client.append(*taken.keep)
        later(sides, 0.1)
    assert len(sides.client.settlement(kind, sides.channel)) == 256


async def test_a_timekeepers_word_alone_makes_no_room_for_cycles() -> None:
    sides = await settled(1)
    cycles = [cycle_of(sides, nonce=digest(f"n{n}")) for n in range(MOST_PROPOSED)]
    words = [make_verdict(cycle, judged_ms=sides.now_ms) for cycle in cycles]
    await sides.client.append(*cycles, *words)
    more = cycle_of(sides, nonce=digest("more"))
    assert not check(sides, more.record).keep
    await sides.client.append(*make_legs(cycles[0], [PROVIDER, CLIENT, THIRD]))
    assert [one.id for one in check(sides, more.record).keep] == [more.id]


async def test_a_lost_ledger_gets_back_settled_cycles_of_long_ago_over_several_pages() -> None:
    sides = await settled(1)
    await sides.bring_together()
    for n in range(24):
        cycle = cycle_of(sides, nonce=digest(f"n{n}"))
        legs = make_legs(cycle, [PROVIDER, CLIENT, THIRD])
        await sides.client.append(cycle, *legs, make_verdict(cycle, judged_ms=sides.now_ms))
    later(sides, 99)
    empty = MemoryLedger()
    await empty.append(sides.dealings.offer, sides.dealings.channel)
    sides.provider = empty
    assert await sides.bring_together() > 1
    assert len(in_force(sides.provider, sides.channel)) == 24
    assert in_force(sides.provider, sides.channel) == in_force(sides.client, sides.channel)


async def test_what_came_to_nothing_goes_over_no_more() -> None:
    sides = await settled(1)
    half, both = set_off_of(sides, [PROVIDER]), set_off_of(sides, nonce=digest("both"))
    cycle = cycle_of(sides)
    legs = make_legs(cycle, [PROVIDER])
    void = make_verdict(cycle, is_complete=False, judged_ms=sides.now_ms + 2 * DAY_MS)
    await sides.provider.append(half, both, cycle, *legs, void)

    def named(now_ms: int) -> set[bytes]:
        listed = Listing(sides.provider, sides.channel, (), now_ms=now_ms).places
        return {at.id for at in listed if at.rank > 5}

    assert named(sides.now_ms) == {one.id for one in (half, both, cycle, *legs, void)}
    assert named(sides.now_ms + 9 * DAY_MS) == {one.id for one in (both, cycle, *legs, void)}
    assert named(sides.now_ms + 99 * DAY_MS) == {both.id}
    await sides.provider.append(make_verdict(cycle, judged_ms=sides.now_ms))
    assert len(named(sides.now_ms + 99 * DAY_MS)) == 4 + len(legs)
