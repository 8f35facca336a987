"""Cases of set-offs and cycles; see `audit_cases`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pgrid.proto.cycle import Cycle, Leg
from p2pgrid.proto.record import Role, Signed, sign_message
from tests.factories import (
    make_card,
    make_cycle,
    make_legs,
    make_set_off,
    make_verdict,
    set_off_side,
    signed_by_names,
)
from tests.proto.audit_cases import BOTH, UNCLEAR, C, P, vector
from tests.proto.audit_cases import both as both_files
from tests.proto.audit_cases_settlement import sold, statement
from tests.proto.chains import DAY_MS, Dealings, LinesBundle, bundle_of, digest, key
from tests.proto.mutual import Pair, mutual


@vector("set-off-mismatch", BOTH)
def set_off_in_another_currency() -> list[LinesBundle]:
    pair = mutual()
    pair.keep(pair.set_off(currency="CHF"))
    return pair.files()


@vector("set-off-mismatch", BOTH, proven=False)
def set_off_with_another_debtor() -> list[LinesBundle]:
    """By its card the stranger is the second creditor; the channel says otherwise."""
    pair = mutual()
    side, other = (set_off_side(grid.channel, (pair.invoices[id(grid)][0], 9)) for grid in pair.both)
    stranger = key("stranger").public_key.raw
    wrong = type(side)(
        channel=side.channel, creditor=side.creditor, debtor=stranger, card=side.card, claims=side.claims
    )
    carded = type(other)(
        channel=other.channel, creditor=other.creditor, debtor=other.debtor, card=digest("card"), claims=other.claims
    )
    pair.keep(make_set_off(wrong, carded, pair.keys))
    return pair.files()


@vector("set-off-mismatch", BOTH)
def claim_of_another_channel() -> list[LinesBundle]:
    pair = mutual()
    invoice = pair.invoices[id(pair.sells)][0]
    sides = [set_off_side(grid.channel, (invoice, 9)) for grid in pair.both]
    agreed_ms = pair.statements[id(pair.sells)][0].message.stated_ms + DAY_MS
    pair.keep(make_set_off(*sides, pair.keys, agreed_ms=agreed_ms))
    return pair.files()


@vector("set-off-mismatch", BOTH, proven=False)
def claim_on_the_invoice_of_another_statement() -> list[LinesBundle]:
    pair = mutual()
    pair.state(pair.sells, 4, 5)
    side, other = (set_off_side(grid.channel, (pair.invoices[id(grid)][0], 9)) for grid in pair.both)
    (claim,) = side.claims
    number = pair.invoices[id(pair.sells)][1].message.invoice_number
    wrong = type(claim)(statement=claim.statement, invoice_number=number, cents=claim.cents)
    side = type(side)(channel=side.channel, creditor=side.creditor, debtor=side.debtor, card=b"", claims=(wrong,))
    agreed_ms = pair.statements[id(pair.sells)][1].message.stated_ms + DAY_MS
    pair.keep(make_set_off(side, other, pair.keys, agreed_ms=agreed_ms))
    return pair.files()


@vector("set-off-mismatch", UNCLEAR)
def more_set_off_than_is_open() -> list[LinesBundle]:
    pair = mutual()
    for nonce, cents in (("one", 9), ("two", 1)):
        pair.keep(pair.set_off(cents, nonce=digest(nonce)))
    return pair.files_of_one()


@vector("set-off-mismatch", BOTH)
def leg_of_other_cents() -> list[LinesBundle]:
    pair, cycle = in_a_cycle()
    legs = make_legs(cycle, pair.keys)
    own = next(leg.message for leg in legs if leg.message.channel == pair.sells.channel.message.channel)
    wrong = Leg(
        channel=own.channel,
        cycle=own.cycle,
        creditor=own.creditor,
        debtor=own.debtor,
        currency=own.currency,
        amount_cents=own.amount_cents + 1,
    )
    for signed in (cycle, signed_by_names(wrong, pair.keys)):
        pair.sells.keep(signed)
    return pair.files_of_one()


@vector("two-records-one-slot", BOTH)
def two_set_offs_with_one_nonce() -> list[LinesBundle]:
    pair = mutual()
    for cents in (3, 4):
        pair.keep(pair.set_off(cents))
    return pair.files()


@vector("time-backwards", BOTH)
def set_off_before_its_statements() -> list[LinesBundle]:
    pair = mutual()
    stated_ms = pair.statements[id(pair.sells)][0].message.stated_ms
    pair.keep(pair.set_off(agreed_ms=stated_ms - 120_001))
    return pair.files()


@vector("wrong-key", P)
def set_off_signed_by_a_stranger() -> list[LinesBundle]:
    """In the provider's copy; the client's is right."""
    pair = mutual()
    right = pair.keep(pair.set_off())
    stranger = sign_message(right.message, Role.CLIENT, key("stranger"))
    forged = pair.set_off(keys=pair.keys[:1]).countersigned(Role.CLIENT, key("stranger"))
    assert stranger.id == forged.id
    pair.sells.keep(forged, by="provider")
    return pair.files()


@vector("key-not-bound", P, proven=False)
def creditor_that_buys_with_a_key_of_no_card() -> list[LinesBundle]:
    pair = mutual(client=key("client"))
    card = make_card(pair.sells.provider)
    buys = sold(5, provider=key("client"), client=key("buyer"), nonce=_above(pair.sells, "buyer"))
    pair = Pair(pair.sells, buys, pair.statements, pair.invoices)
    pair.state(buys, 1, 3)
    side, other = (set_off_side(grid.channel, (pair.invoices[id(grid)][0], 9)) for grid in pair.both)
    side = type(side)(
        channel=side.channel, creditor=side.creditor, debtor=side.debtor, card=card.id, claims=side.claims
    )
    agreed_ms = pair.statements[id(pair.sells)][0].message.stated_ms + DAY_MS
    for signed in (card, make_set_off(side, other, pair.keys, agreed_ms=agreed_ms)):
        pair.keep(signed)
    return pair.files()


# -- what statements count ----------------------------------------------------------------------------------------


@vector("statement-mismatch", P, proven=False)
def set_off_that_no_record_stands_behind() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, set_off_cents=9)
    return both_files(grid)


@vector("statement-mismatch", P)
def set_off_below_zero() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, set_off_cents=-1)
    return both_files(grid)


@vector("statement-mismatch", P, proven=False)
def set_off_counted_twice() -> list[LinesBundle]:
    pair = mutual()
    set_off = pair.keep(pair.set_off())
    for first in (4, 5):
        stated_ms = set_off.message.agreed_ms + first * DAY_MS
        pair.state(pair.sells, first, first, set_off_cents=9, stated_ms=stated_ms)
    return pair.files_of_one()


@vector("statement-mismatch", P, proven=False)
def set_off_counted_before_its_time() -> list[LinesBundle]:
    pair = mutual()
    set_off = pair.keep(pair.set_off())
    pair.state(pair.sells, 4, 5, set_off_cents=9, stated_ms=set_off.message.agreed_ms - 120_001)
    return pair.files_of_one()


@vector("statement-mismatch", P, proven=False)
def set_off_counted_with_one_signature() -> list[LinesBundle]:
    pair = mutual()
    half = pair.keep(pair.set_off(keys=pair.keys[:1]))
    pair.state(pair.sells, 4, 5, set_off_cents=9, stated_ms=half.message.agreed_ms + DAY_MS)
    return pair.files_of_one()


@vector("statement-mismatch", P, proven=False)
def set_off_never_counted() -> list[LinesBundle]:
    pair = mutual()
    set_off = pair.keep(pair.set_off())
    for days in (1, 2):
        pair.state(pair.sells, 3 + days, 3 + days, stated_ms=set_off.message.agreed_ms + days * DAY_MS)
    return pair.files_of_one()


@vector("statement-mismatch", P, proven=False)
def leg_counted_though_one_was_not_signed() -> list[LinesBundle]:
    pair, cycle = in_a_cycle()
    legs = make_legs(cycle, [*pair.keys, key("third")])
    without = signed_by_names(legs[-1].message, [key("third")])
    for signed in (cycle, *legs[:-1], without, make_verdict(cycle)):
        pair.sells.keep(signed)
    pair.state(pair.sells, 4, 5, set_off_cents=5, stated_ms=cycle.message.deadline_ms)
    return pair.files_of_one()


@vector("statement-mismatch", P, proven=False)
def leg_counted_without_the_timekeeper_s_word() -> list[LinesBundle]:
    pair, cycle = in_a_cycle()
    for signed in (cycle, *make_legs(cycle, [*pair.keys, key("third")])):
        pair.sells.keep(signed)
    pair.state(pair.sells, 4, 5, set_off_cents=5, stated_ms=cycle.message.deadline_ms)
    return pair.files_of_one()


# -- what is not there --------------------------------------------------------------------------------------------


@vector("record-missing", BOTH)
def statement_that_was_set_off_not_there() -> list[LinesBundle]:
    pair = mutual()
    pair.keep(pair.set_off())
    return without(pair, lambda one: one.id in _ids(pair, pair.statements) | _ids(pair, pair.invoices))


@vector("record-missing", BOTH)
def invoice_that_was_set_off_not_there() -> list[LinesBundle]:
    pair = mutual()
    pair.keep(pair.set_off())
    return without(pair, lambda one: one.id in _ids(pair, pair.invoices))


@vector("record-missing", BOTH)
def cycle_of_a_leg_not_there() -> list[LinesBundle]:
    pair, cycle = in_a_cycle()
    for signed in make_legs(cycle, pair.keys):
        if signed.message.channel == pair.sells.channel.message.channel:
            pair.sells.keep(signed)
    return pair.files_of_one()


@vector("left-out", P)
def set_off_that_its_signer_leaves_out() -> list[LinesBundle]:
    pair = mutual()
    set_off = pair.keep(pair.set_off())
    pair.sells.provider_has.remove(set_off)
    return pair.files()


@vector("not-received", UNCLEAR)
def second_signature_not_received() -> list[LinesBundle]:
    pair = mutual()
    pair.keep(pair.set_off())
    pair.sells.keep(pair.set_off(keys=pair.keys[:1]), by="provider")
    return pair.files()


@vector("awaiting-countersignature", C)
def set_off_waits() -> list[LinesBundle]:
    pair = mutual()
    pair.keep(pair.set_off(keys=pair.keys[:1]))
    for grid in pair.both:
        pair.pay(grid, 0)
    return pair.files()


@vector("card-missing", UNCLEAR)
def card_of_a_set_off_not_there() -> list[LinesBundle]:
    files = creditor_that_buys_with_a_key_of_no_card()
    lines = [[line for line in one.lines if b"/p2pgrid/card/1" not in line] for one in files]
    return [rebundled(one, kept) for one, kept in zip(files, lines, strict=True)]


def in_a_cycle() -> tuple[Pair, Signed[Cycle]]:
    """The client owes the provider, who owes a third, who owes the client."""
    pair = mutual()
    third = key("third")
    channels = [
        pair.sells.channel,
        Dealings(provider=third, client=pair.sells.provider).channel,
        Dealings(provider=pair.sells.client, client=third).channel,
    ]
    stated_ms = pair.statements[id(pair.sells)][0].message.stated_ms
    times = {"proposed_ms": stated_ms + DAY_MS, "deadline_ms": stated_ms + 5 * DAY_MS}
    return pair, make_cycle(channels, pair.sells.provider, amount_cents=5, **times)


def without(pair: Pair, is_left_out: Any) -> list[LinesBundle]:
    """The files of the first channel without some records."""
    for book in (pair.sells.provider_has, pair.sells.client_has):
        book[:] = [one for one in book if not is_left_out(one)]
    return pair.files_of_one()


def rebundled(bundle: LinesBundle, lines: Sequence[bytes]) -> LinesBundle:
    """The same file with other lines."""
    return bundle_of(lines, bundle.side, bundle.source)


def _ids(pair: Pair, records: dict[int, list[Any]]) -> set[bytes]:
    return {one.id for one in records[id(pair.sells)]}


def _above(grid: Dealings, buyer: str) -> str:
    """A nonce with which the back channel's id is above the other's."""
    nonces = (f"{buyer} {n}" for n in range(100))
    return next(
        nonce
        for nonce in nonces
        if Dealings(provider=key("client"), client=key(buyer), nonce=nonce).channel.message.channel
        > grid.channel.message.channel
    )
