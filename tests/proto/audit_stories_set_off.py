"""Set-offs and cycles within the rules; see `audit_stories`."""

from __future__ import annotations

from p2pgrid.proto.card import PeerKey
from tests.factories import NOW_MS, make_card, make_legs, make_set_off, make_verdict, set_off_side
from tests.proto.audit_cases_set_off import _above, in_a_cycle
from tests.proto.audit_cases_settlement import sold
from tests.proto.chains import DAY_MS, LinesBundle, bundle_of, key
from tests.proto.mutual import Pair, mutual


def set_off_both_ways(*, late: bool = False) -> Pair:
    """Nine cents each, counted in the next statement of both, or one later."""
    pair = mutual()
    set_off = pair.keep(pair.set_off())
    for grid in pair.both:
        for days, cents in ((1, 0 if late else 9), (2, 9 if late else 0)):
            stated_ms = set_off.message.agreed_ms + (days * DAY_MS if days == 2 else 120_000)
            pair.state(grid, 3 + days, 3 + days, set_off_cents=cents, stated_ms=stated_ms)
            pair.pay(grid, days)
    return pair


def all_four(*, late: bool = False) -> list[LinesBundle]:
    return set_off_both_ways(late=late).files()


def of_one_side() -> list[LinesBundle]:
    return set_off_both_ways().files_of_one()


def of_one_key_each() -> list[LinesBundle]:
    """One file for each operator, who has one key for both."""
    pair = set_off_both_ways()
    provider, client = pair.sells.bundles()
    other_provider, other_client = pair.buys.bundles()
    mine = list(dict.fromkeys([*provider, *other_client]))
    theirs = list(dict.fromkeys([*client, *other_provider]))
    return [bundle_of(mine, source="a.jsonl"), bundle_of(theirs, source="b.jsonl")]


def lapsed() -> list[LinesBundle]:
    """A proposal that nobody signed in time."""
    pair = mutual()
    pair.keep(pair.set_off(keys=pair.keys[:1]))
    for grid in pair.both:
        pair.pay(grid, 0)
    return pair.files()


def by_two_keys() -> list[LinesBundle]:
    """The provider buys with another key, which its card names."""
    pair = mutual()
    term = {"valid_from_ms": NOW_MS - DAY_MS, "valid_until_ms": NOW_MS + 365 * DAY_MS}
    sells, buyer = pair.sells.provider, key("buyer")
    card = make_card(peers=tuple(PeerKey(key=one.public_key.raw, **term) for one in (sells, buyer)))
    buys = sold(5, provider=key("client"), client=buyer, nonce=_above(pair.sells, "buyer"))
    pair = Pair(pair.sells, buys, pair.statements, pair.invoices)
    pair.state(buys, 1, 3)
    side, other = (set_off_side(grid.channel, (pair.invoices[id(grid)][0], 9)) for grid in pair.both)
    side = type(side)(
        channel=side.channel, creditor=side.creditor, debtor=side.debtor, card=card.id, claims=side.claims
    )
    agreed_ms = pair.statements[id(pair.sells)][0].message.stated_ms + DAY_MS
    set_off = make_set_off(side, other, pair.keys, agreed_ms=agreed_ms)
    for signed in (card, set_off):
        pair.keep(signed)
    # The ledger that buys has it from the other side alone, and not yet with both signatures.
    buys.keep(make_set_off(side, other, pair.keys[1:], agreed_ms=agreed_ms), by="client")
    return pair.files()


def cycle_settled(*, verdicts: tuple[bool, ...] = (True,), counted: int = 5) -> list[LinesBundle]:
    """All three have signed; five cents are taken off in the next statement, though the first invoice is paid."""
    pair, cycle = in_a_cycle()
    deadline_ms = cycle.message.deadline_ms
    said = [
        make_verdict(cycle, is_complete=one, judged_ms=cycle.message.proposed_ms + 1000 if one else deadline_ms + 1)
        for one in verdicts
    ]
    for signed in (cycle, *make_legs(cycle, [*pair.keys, key("third")]), *said):
        pair.sells.keep(signed)
    pair.state(pair.sells, 4, 5, set_off_cents=counted, stated_ms=deadline_ms)
    for index, cents in enumerate((9, 9 - counted)):
        pair.pay(pair.sells, index, amount_cents=cents)
    return pair.files_of_one()


def cycle_of_a_timekeeper_alone() -> list[LinesBundle]:
    """What the timekeeper has: none of the channels."""
    pair, cycle = in_a_cycle()
    records = (cycle, *make_legs(cycle, [*pair.keys, key("third")]), make_verdict(cycle))
    return [bundle_of([one.record.to_json_line() for one in records])]
