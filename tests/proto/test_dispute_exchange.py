"""Two ledgers' disputes held side by side: whatever each lacks, both come to hold all, and nothing unsound."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.dispute_exchange import check_sent, compare, held_by_both, note_held, page_of, record_of
from p2pgrid.proto.record import Message, Role, Signed
from p2pgrid.proto.wire.base import MAX_COMPARED, MAX_NUMBER
from p2pgrid.proto.wire.disputes import DisputesHeld, HeldDispute
from tests.factories import CLIENT as CLIENT_KEY
from tests.factories import DAY_MS, NOW_MS, Dealings, make_answer, make_dispute, resigned

RECEIPTS = 140
D = Dealings()
CHAIN: Sequence[Signed[Message]] = D.chain(RECEIPTS, ticks=0)
BY_CLIENT = [make_dispute(one) for one in D.receipts]
BY_PROVIDER = [make_dispute(one, Role.PROVIDER) for one in D.receipts]
ANSWERS = [make_answer(one) for one in (*BY_CLIENT, *BY_PROVIDER)]
NOW = NOW_MS + DAY_MS
BASE = MemoryLedger()


async def ledger_of(*signed: Signed[Message]) -> MemoryLedger:
    if not BASE.counts()["/p2pgrid/channel/1"]:
        await BASE.append(*CHAIN)
    ledger = BASE.crashed()
    await ledger.append(*signed)
    return ledger


async def exchange(client: MemoryLedger, provider: MemoryLedger) -> int:
    """As the two shells do it; how many exchanges it took."""
    after = rounds = 0
    while after < MAX_NUMBER:
        rounds += 1
        held = page_of(client, D.id, after)
        compared, sent = compare(provider, held)
        assert after < compared.until <= held.until
        assert len(held.held) <= MAX_COMPARED and len(sent) == compared.records <= MAX_COMPARED
        await client.append(*check_sent(sent, client, D.channel, now_ms=NOW).keep)
        lacking = [record_of(client, one) for one in compared.lacks]
        await provider.append(*check_sent(lacking, provider, D.channel, now_ms=NOW).keep)
        both = held_by_both(provider, held, compared.until, sent, ())
        assert len(both) == len([n for n, _ in client.dispute_ids(D.id, after=after) if n <= compared.until])
        after = compared.until
    return rounds


def ids(ledger: MemoryLedger) -> set[bytes]:
    return {record_id for _, record_id in ledger.dispute_ids(D.id)}


@st.composite
def subsets(draw: st.DrawFn) -> list[Signed[Message]]:
    """Disputes and answers about a few receipts, each answer with its dispute."""
    chosen: list[Signed[Message]] = []
    for index in draw(st.lists(st.integers(0, 2 * RECEIPTS - 1), max_size=8, unique=True)):
        dispute = (*BY_CLIENT, *BY_PROVIDER)[index]
        chosen += [dispute, ANSWERS[index]] if draw(st.booleans()) else [dispute]
    return chosen


@settings(max_examples=40, deadline=None)
@given(subsets(), subsets())
def test_both_come_to_hold_all(ours: list[Signed[Message]], theirs: list[Signed[Message]]) -> None:
    async def run() -> None:
        client, provider = await ledger_of(*ours), await ledger_of(*theirs)
        assert await exchange(client, provider) == 1
        assert ids(client) == ids(provider) == {one.id for one in (*ours, *theirs)}

    asyncio.run(run())


async def test_hundreds_go_in_several_exchanges_whichever_side_holds_them() -> None:
    mine, theirs = [*BY_CLIENT, *ANSWERS[RECEIPTS:]], [*BY_PROVIDER, *ANSWERS[:RECEIPTS]]
    client = await ledger_of(*BY_CLIENT, *BY_PROVIDER, *ANSWERS[RECEIPTS:])
    provider = await ledger_of(*BY_CLIENT, *BY_PROVIDER, *ANSWERS[:RECEIPTS])
    assert 1 < await exchange(client, provider) <= 5
    assert ids(client) == ids(provider) == {one.id for one in (*mine, *theirs)}
    for one in (await ledger_of(), await ledger_of(*mine[:RECEIPTS])):
        assert 1 < await exchange(one, provider) <= 6
        assert ids(one) == ids(provider)
    empty = await ledger_of()
    assert await exchange(client, empty) > 1
    assert ids(empty) == ids(client)


async def test_what_the_client_has_not_seen_is_not_disputed_before_it() -> None:
    d = Dealings()
    proposal = d.proposal(order := d.order())
    dispute = make_dispute(proposal, Role.PROVIDER)
    ledger = MemoryLedger()
    await ledger.append(d.offer, d.channel, order, proposal, dispute)
    nothing = DisputesHeld(channel=d.id, after=0, until=MAX_NUMBER, held=())
    assert compare(ledger, nothing)[1] == []
    await ledger.append(make_dispute(proposal))
    assert len(compare(ledger, nothing)[1]) == 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"owed_pico": 10**15}, "wrong-dispute"),
        ({"receipt": bytes(32)}, "wrong-dispute"),
        ({"disputed_ms": NOW_MS - DAY_MS}, "time-backwards"),
        ({"disputed_ms": NOW + DAY_MS}, "clock-skew"),
        ({"disputed_ms": NOW_MS + 15 * DAY_MS}, "dispute-late"),
    ],
)
async def test_unsound_disputes(changes: dict[str, Any], code: str) -> None:
    ledger = await ledger_of()
    bad = resigned(make_dispute(D.receipts[0]), CLIENT_KEY, Role.CLIENT, **changes)
    now_ms = NOW_MS + 20 * DAY_MS if code == "dispute-late" else NOW
    with pytest.raises(InvalidRecord) as fault:
        check_sent([bad.record], ledger, D.channel, now_ms=now_ms)
    assert fault.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"owed_pico": 7}, "wrong-answer"),
        ({"by": Role.CLIENT}, "signature-missing"),
        ({"answered_ms": NOW_MS - DAY_MS}, "time-backwards"),
        ({"answered_ms": NOW + DAY_MS}, "clock-skew"),
        ({"receipt_number": 2}, "wrong-answer"),
    ],
)
async def test_unsound_answers(changes: dict[str, Any], code: str) -> None:
    ledger = await ledger_of(BY_CLIENT[0])
    bad = make_answer(BY_CLIENT[0], **changes)
    with pytest.raises(InvalidRecord) as fault:
        check_sent([bad.record], ledger, D.channel, now_ms=NOW)
    assert fault.value.code == code


async def test_what_is_out_of_place() -> None:
    ledger = await ledger_of()
    other = Dealings(name="another")
    other.chain(1)
    for sent, words in (
        ([ANSWERS[0]], "without its dispute"),
        ([make_dispute(other.receipts[0])], "another channel"),
        ([BY_CLIENT[0], make_answer(BY_CLIENT[0], channel=other.id)], "another channel"),
        ([D.receipts[0]], "where disputes were exchanged"),
        ([BY_CLIENT[0], make_dispute(D.receipts[0], statement="Another.")], "one slot"),
        ([BY_CLIENT[0], ANSWERS[0], make_answer(BY_CLIENT[0], statement="Another.")], "one slot"),
    ):
        with pytest.raises(ProtocolViolation, match=words):
            check_sent([one.record for one in sent], ledger, D.channel, now_ms=NOW)
    unknown = make_dispute(resigned(D.receipts[0], CLIENT_KEY, Role.CLIENT, receipt_number=10**6))
    with pytest.raises(Refused, match="not on record here"):
        check_sent([unknown.record], ledger, D.channel, now_ms=NOW)


async def test_another_record_in_the_slot_is_evidence() -> None:
    answer = make_answer(BY_CLIENT[0], decision=Decision.REJECTED, statement="No.")
    ledger = await ledger_of(BY_CLIENT[0], answer, BY_PROVIDER[1])
    rival = make_dispute(D.receipts[1], Role.PROVIDER, statement="Another.")
    checked = check_sent([ANSWERS[0].record, rival.record, BY_CLIENT[2].record], ledger, D.channel, now_ms=NOW)
    assert checked.conflicting == (ANSWERS[0].record, rival.record)
    assert [one.id for one in checked.keep] == [one.id for one in checked.disputes] == [BY_CLIENT[2].id]


async def test_a_client_that_lists_what_it_likes_harms_itself_alone() -> None:
    ledger = await ledger_of(*BY_CLIENT[:5])
    made_up = HeldDispute(receipt_number=3, id=bytes(32))
    theirs = DisputesHeld(channel=D.id, after=0, until=4, held=(made_up,) * 3)
    compared, sent = compare(ledger, theirs)
    assert compared.until == 4 and compared.lacks == (bytes(32),) * 3
    assert [one.id for one in sent] == [one.id for one in BY_CLIENT[:4]]


async def test_what_both_hold_is_mentioned_once() -> None:
    ledger = await ledger_of(BY_CLIENT[0], ANSWERS[0], BY_PROVIDER[1])
    books = ChannelBooks(D.channel, ledger.head(D.id))
    both = [BY_CLIENT[0].id, ANSWERS[0].id, BY_PROVIDER[1].id, bytes(32)]
    note_held(books, ledger, both)
    assert set(books.mentions(NOW)) == set(both[:3])
    d = Dealings()
    d.chain(RECEIPTS, ticks=0)
    order = d.order()
    receipt = d.proposal(order, mentions=tuple(both[:2]))
    assert books.mention_fault(receipt.message) is None
    books.append(receipt)
    # Before the receipt is in the ledger, and after.
    note_held(books, ledger, both)
    assert books.mentions(NOW) == (BY_PROVIDER[1].id,)
    await ledger.append(order, receipt)
    fresh = ChannelBooks(D.channel, ledger.head(D.id))
    note_held(fresh, ledger, both)
    assert fresh.mentions(NOW) == (BY_PROVIDER[1].id,)
