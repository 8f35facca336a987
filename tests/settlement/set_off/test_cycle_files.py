"""Cycles by files that go round: each party signs by its own books, and the timekeeper says what holds for all."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.desk.asks import KeepSetOffs
from p2pgrid.desk.set_offs import cycle_files, cycle_view, keep_set_offs
from p2pgrid.errors import UsageError
from p2pgrid.proto.card import PeerKey
from p2pgrid.proto.cycle_rules import CycleState
from p2pgrid.proto.keys import PublicKey
from p2pgrid.settlement.set_off.claims import OPEN_CYCLE_MS, in_force, open_claims
from p2pgrid.settlement.set_off.cycle_file import CycleFile, make_file, read_cycle_file, why_not_join
from p2pgrid.settlement.set_off.debt_offers import DebtOffer, find_cycles, make_cycle, offer_of, read_offers, to_line
from tests.factories import digest, make_card, make_verdict, secret_key, signed_by_names
from tests.settlement.set_off.rig import AT_MS, DAY_MS, Debt, Party, altered, left_to_pay, lines_of, open_cents, owes

TIMEKEEPER = secret_key("timekeeper")
DEADLINE_MS = AT_MS + 5 * DAY_MS


async def ring(*sums: int) -> tuple[list[Party], list[Debt]]:
    """Each party owes the next; the last one the first."""
    parties = [Party(f"party {n}") for n in range(len(sums))]
    debts = [await owes(parties[n], parties[(n + 1) % len(sums)], cents) for n, cents in enumerate(sums)]
    return parties, debts


def told(party: Party, round_to: int = 1, **changes: Any) -> list[DebtOffer]:
    found = []
    for channel, ledger in party.books.channels.values():
        cents = sum(claim.open_cents for claim in open_claims(ledger, channel, at_ms=AT_MS, ours=party.operator.keys))
        one = offer_of(channel, cents, round_to=round_to)
        found += [one] if one is not None else []
    return found


def went_round(parties: list[Party]) -> list[DebtOffer]:
    """The file, once all have added their own: each debt once."""
    offers = {one.channel: one for party in parties for one in told(party)}
    return read_offers(map(to_line, offers.values()))


def proposed(parties: list[Party], proposer: Party, **changes: Any) -> CycleFile:
    offers = went_round(parties)
    found = find_cycles(offers, through=peer_id(proposer.key.public_key), currency="EUR")[0]
    terms: dict[str, Any] = {"now_ms": AT_MS, "deadline_ms": DEADLINE_MS, "nonce": digest("nonce"), **changes}
    keys = {"proposer": proposer.key.public_key.raw, "timekeeper": TIMEKEEPER.public_key.raw}
    return make_file(signed_by_names(make_cycle(found, offers, **keys, **terms), [proposer.key]))


def peer_id(key: PublicKey) -> str:
    return key.peer_id


async def kept(party: Party, file: CycleFile) -> None:
    await keep_set_offs(party.ledger, [party.key], KeepSetOffs(lines=lines_of(file.records)), AT_MS)


def passed_on(file: CycleFile) -> CycleFile:
    """As the next one reads it."""
    return read_cycle_file(file.lines())


@pytest.mark.parametrize("size", [3, 4, 5, 6])
async def test_a_cycle_from_the_first_word_to_the_books(size: int) -> None:
    parties, debts = await ring(*(500 + 100 * n for n in range(size)))
    file = proposed(parties, parties[1])
    assert file.cycle.message.amount_cents == 500
    for party in parties:
        assert why_not_join(file.cycle, party.books, party.operator, now_ms=AT_MS) == []
        file = passed_on(file.signed([party.key]))
        await kept(party, file)
    assert file.missing == [] and file.state is CycleState.OPEN
    assert all(in_force(p.ledger, d.channel.message.channel) == [] for p in parties for d in debts)
    judged = file.judged(TIMEKEEPER, None, now_ms=DEADLINE_MS)
    assert judged is not None and judged.state is CycleState.SETTLED
    for n, party in enumerate(parties):
        await kept(party, passed_on(judged))
        for debt in (debts[n], debts[n - 1]):
            (taken,) = in_force(party.ledger, debt.channel.message.channel)
            assert (taken.cents, taken.at_ms, taken.is_cycle) == (500, DEADLINE_MS, True)
        assert open_cents(party, [debts[n]]) == sum(left_to_pay(party, debts[n])) == 100 * n
        assert open_cents(party, [debts[n - 1]]) == 100 * ((n - 1) % size)
        (shown,) = cycle_files(party.books).values()
        assert cycle_view(shown).state == "settled"


async def test_too_late_it_is_void_and_the_debts_are_as_they_were() -> None:
    parties, debts = await ring(500, 600, 700)
    file = proposed(parties, parties[0])
    for party in parties[:2]:
        file = file.signed([party.key])
    assert sorted(role for _, role in file.missing) == ["client", "provider"]
    assert file.judged(TIMEKEEPER, None, now_ms=DEADLINE_MS) is None
    judged = file.judged(TIMEKEEPER, None, now_ms=DEADLINE_MS + 1)
    assert judged is not None and judged.state is CycleState.VOID
    # The last one signs all the same, and asks again.
    late = judged.signed([parties[2].key])
    again = late.judged(TIMEKEEPER, judged.verdicts[0], now_ms=DEADLINE_MS + 2)
    assert again is not None and again.verdicts == judged.verdicts and again.state is CycleState.VOID
    for party in parties:
        await kept(party, again)
    assert open_cents(parties[0], debts) == 500 + 700


async def test_while_it_is_open_nothing_is_promised_twice() -> None:
    parties, debts = await ring(500, 600, 700)
    file = proposed(parties, parties[0]).signed([parties[0].key])
    await kept(parties[0], file)
    assert open_cents(parties[0], [debts[0]]) == 0 and open_cents(parties[0], [debts[2]]) == 200
    again = proposed(parties, parties[1], nonce=digest("another"))
    reasons = why_not_join(again.cycle, parties[0].books, parties[0].operator, now_ms=AT_MS)
    assert len(reasons) == 2 and all("less than 5.00" in one for one in reasons)
    assert why_not_join(file.cycle, parties[0].books, parties[0].operator, now_ms=AT_MS) == []
    assert open_cents(parties[0], [debts[0]], DEADLINE_MS + OPEN_CYCLE_MS + 1) == 500


async def test_what_a_party_looks_at_before_it_signs() -> None:
    parties, debts = await ring(500, 600, 700)
    file = proposed(parties, parties[1])
    us = parties[0]

    def reasons(party: Party = us, at_ms: int = AT_MS, **changes: Any) -> str:
        return " ".join(why_not_join(file.cycle, party.books, party.operator, now_ms=at_ms, **changes))

    assert reasons() == ""
    assert "deadline is over" in reasons(at_ms=DEADLINE_MS)
    assert "more than 4.99" in reasons(most_cents=499)
    assert "not creditor of one" in reasons(Party("stranger"))
    await debts[0].paid(0, 1)
    assert "There we owe 4.99, less than 5.00." in reasons()


async def test_a_debt_that_was_made_up_is_signed_by_nobody() -> None:
    """One party tells of a claim that is none; the cycle that it proposes comes to nothing."""
    parties, _ = await ring(500, 600, 700)
    stranger = Party("stranger")
    invented = await owes(stranger, parties[0], 900)
    assert why_not_join(proposed(parties, parties[1]).cycle, stranger.books, stranger.operator, now_ms=AT_MS)
    assert invented.invoices


async def test_a_leg_covers_the_oldest_and_what_was_paid_meanwhile_is_on_account() -> None:
    parties, debts = await ring(300, 600, 700)
    await debts[0].invoiced(400)
    file = proposed(parties, parties[0])
    assert file.cycle.message.amount_cents == 600
    for party in parties:
        file = file.signed([party.key])
    judged = file.judged(TIMEKEEPER, None, now_ms=AT_MS)
    assert judged is not None
    await kept(parties[0], judged)
    assert left_to_pay(parties[0], debts[0]) == [0, 100]
    await debts[0].paid(0, 300)
    assert left_to_pay(parties[0], debts[0]) == [0, -200], "400 are covered, and 200 are on account"
    await debts[0].invoiced(1000)
    assert left_to_pay(parties[0], debts[0]) == [0, 0, 800] and open_cents(parties[0], [debts[0]]) == 800


async def test_copies_that_were_signed_apart_are_joined() -> None:
    parties, _ = await ring(500, 600, 700)
    file = proposed(parties, parties[0])
    copies = [file.signed([party.key]) for party in parties]
    joined = copies[0].joined(copies[1]).joined(copies[2])
    assert (joined.missing == [] and passed_on(joined) == joined) or passed_on(joined).lines() == joined.lines()
    other = proposed(parties, parties[0], nonce=digest("another"))
    with pytest.raises(UsageError, match="two cycles"):
        joined.joined(other)


async def test_files_that_are_none() -> None:
    parties, _ = await ring(500, 600, 700)
    file = proposed(parties, parties[0])
    for party in parties:
        file = file.signed([party.key])
    lines = file.lines()
    other = proposed(parties, parties[0], nonce=digest("another"))
    leg = file.legs[0]
    wrong = altered(leg, amount_cents=leg.message.amount_cents + 1).record.to_json_line()
    early = make_verdict(file.cycle, TIMEKEEPER, is_complete=False, judged_ms=DEADLINE_MS)
    liar = make_verdict(file.cycle, secret_key("liar"))
    for bad, match in (
        ([], "no cycle"),
        (lines[1:], "no cycle"),
        ([*lines, *other.lines()], "several cycles"),
        ([*lines, b"{}"], "line 5 of the file .*malformed"),
        ([lines[0], wrong], "line 2 of the file .*bad-signature"),
        ([*lines, *(one.record.to_json_line() for one in (early,))], "set-off-mismatch"),
        ([*lines, *(one.record.to_json_line() for one in (liar,))], "set-off-mismatch"),
        ([*lines, parties[0].ledger.channels()[0].record.to_json_line()], "wrong-type"),
        ([b"x" * 300_000], "at most"),
    ):
        with pytest.raises(UsageError, match=match):
            read_cycle_file(bad)
    with pytest.raises(UsageError, match="not the timekeeper"):
        file.judged(parties[0].key, None, now_ms=AT_MS)


async def test_both_words_of_a_timekeeper_are_kept_so_that_all_come_to_the_same() -> None:
    parties, debts = await ring(500, 600, 700)
    file = proposed(parties, parties[0])
    for party in parties:
        file = file.signed([party.key])
    verdicts = [
        make_verdict(file.cycle, TIMEKEEPER, is_complete=False, judged_ms=DEADLINE_MS + 1),
        make_verdict(file.cycle, TIMEKEEPER, judged_ms=DEADLINE_MS),
    ]
    both = CycleFile(file.cycle, file.legs, tuple(verdicts))
    assert both.state is CycleState.SETTLED
    await kept(parties[0], passed_on(both))
    assert open_cents(parties[0], debts) == 200
    again = make_verdict(file.cycle, TIMEKEEPER, judged_ms=DEADLINE_MS - 1)
    await kept(parties[0], passed_on(CycleFile(file.cycle, file.legs, (again,))))
    assert [reason.partition(":")[0] for _, reason in parties[0].ledger.evidence()] == ["two-records-one-slot"]
    keeper = Party("timekeeper")
    with pytest.raises(UsageError, match="says one thing"):
        await keep_set_offs(keeper.ledger, [TIMEKEEPER], KeepSetOffs(lines=lines_of(both.records)), AT_MS)


async def test_an_operator_of_two_keys_is_one_party() -> None:
    parties, _ = await ring(500, 600, 700)
    seller, buyer = Party("seller"), Party("buyer")
    incoming, outgoing = await owes(parties[0], seller, 900), await owes(buyer, parties[1], 900)
    term = {"valid_from_ms": 0, "valid_until_ms": AT_MS + 300 * DAY_MS}
    card = make_card(peers=tuple(PeerKey(key=one.key.public_key.raw, **term) for one in (seller, buyer)))
    several = {"operator": tuple(sorted(peer_id(p.key.public_key) for p in (seller, buyer))), "card": card.id.hex()}
    own = [
        DebtOffer(**{**{name: getattr(one, name) for name in one.__struct_fields__}, **several})
        for one in (*told(seller), *told(buyer))
    ]
    others = {one.channel: one for party in parties for one in told(party)}
    offers = [*(one for one in others.values() if one.channel not in {own_one.channel for own_one in own}), *own]
    found = find_cycles(offers, through=peer_id(seller.key.public_key), currency="EUR")
    assert len(found[0].debts) == 4 and found[0].cents == 600
    terms: dict[str, Any] = {"now_ms": AT_MS, "deadline_ms": DEADLINE_MS, "nonce": digest("nonce")}
    keys = {"proposer": seller.key.public_key.raw, "timekeeper": TIMEKEEPER.public_key.raw}
    cycle = make_cycle(found[0], offers, **keys, **terms)
    cards = {debt.channel: debt.card for debt in cycle.debts}
    assert cards[incoming.channel.message.channel] == card.id and outgoing.channel.message.channel in cards
    assert sorted(cards.values()) == [b"", b"", b"", card.id]


def test_lines_that_tell_of_no_debt() -> None:
    peer = peer_id(TIMEKEEPER.public_key)
    right = DebtOffer(
        channel="0" * 64, creditor=peer, debtor=peer_id(secret_key("a").public_key), currency="EUR", cents=1
    )
    assert read_offers([to_line(right), b""]) == [right]
    for wrong in (
        b"{}",
        b"\xff",
        to_line(right).replace(b'"cents":1', b'"cents":0'),
        to_line(right).replace(b'"cents":1', b'"cents":1.5'),
        to_line(right).replace(b'"EUR"', b'"euro"'),
        to_line(right).replace(peer.encode(), b"12D3KooW"),
        to_line(right).replace(right.debtor.encode(), peer.encode()),
        to_line(right)[:-1] + b',"name":"Alice"}',
    ):
        with pytest.raises(UsageError, match="line 1"):
            read_offers([wrong])


async def test_a_timekeeper_that_has_lost_its_ledger_says_again_what_the_file_says() -> None:
    parties, _ = await ring(500, 600, 700)
    file = proposed(parties, parties[0])
    for party in parties:
        file = file.signed([party.key])
    said = file.judged(TIMEKEEPER, None, now_ms=DEADLINE_MS)
    assert said is not None and said.state is CycleState.SETTLED
    # A copy without a leg, so that it is not complete by what it shows; after the deadline.
    again = CycleFile(said.cycle, said.legs[1:], said.verdicts).judged(TIMEKEEPER, None, now_ms=DEADLINE_MS + DAY_MS)
    assert again is not None and again.verdicts == said.verdicts
