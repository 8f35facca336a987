"""One suite over every ledger: what `p2pgrid.ledger.base` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import DisputeRow, SlotTaken
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.remote import RemoteLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.ledger.tables import TABLES
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.messages import Usage
from p2pgrid.proto.record import Record, Role, Signature, Signed
from tests.factories import (
    CLIENT,
    PROVIDER,
    Dealings,
    digest,
    make_answer,
    make_dispute,
    make_offer,
    resigned,
    secret_key,
)
from tests.ledger.served import served_ledger

if TYPE_CHECKING:
    from p2pgrid.ledger.base import Ledger

    # All are the interface; mypy says so.
    _SQLITE: type[Ledger] = SqliteLedger
    _MEMORY: type[Ledger] = MemoryLedger
    _REMOTE: type[Ledger] = RemoteLedger

AnyLedger = SqliteLedger | MemoryLedger | RemoteLedger


@pytest.fixture(params=["memory", "sqlite", "remote"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyLedger]:
    if request.param == "remote":
        async with served_ledger(tmp_path / "ledger.sqlite") as served:
            yield served.remote
        return
    made = MemoryLedger() if request.param == "memory" else SqliteLedger.open(tmp_path / "ledger.sqlite")
    yield made
    await made.aclose()


async def store(ledger: AnyLedger, *signed: Signed) -> None:
    await asyncio.gather(*[ledger.append(one) for one in signed])


def records_of(signed: list[Signed]) -> list[Record]:
    return [one.record for one in signed]


async def test_an_empty_ledger_has_nothing(ledger: AnyLedger) -> None:
    assert ledger.channels() == []
    assert ledger.receipts() == []
    assert list(ledger.records()) == []
    assert list(ledger.evidence()) == []
    assert ledger.counts() == {**dict.fromkeys(TABLES, 0), "evidence": 0}
    with pytest.raises(KeyError):
        ledger.head(bytes(32))
    assert ledger.order(bytes(32), 1) is None
    assert ledger.receipt(bytes(32), 1) is None
    assert ledger.offer(bytes(32)) is None
    assert ledger.open_orders(bytes(32)) == []
    assert ledger.proposals(bytes(32)) == []


async def test_records_come_back_in_the_order_of_arrival_with_the_exact_bytes(ledger: AnyLedger) -> None:
    one, two = Dealings(), Dealings(name="another", client=secret_key("another client"))
    ones, twos = one.chain(3, ticks=2), two.chain(2)[1:]
    mixed = [x for pair in zip(ones, twos, strict=False) for x in pair] + ones[len(twos) :]
    await store(ledger, *mixed)

    frame = [s.record for s in mixed if s.record.payload_type in ("/p2pgrid/offer/1", "/p2pgrid/channel/1")]
    dealings = [s.record for s in mixed if s.record not in frame]
    got = list(ledger.records())
    assert got == [*frame, *dealings]
    assert [r.to_bytes() for r in got] == [r.to_bytes() for r in [*frame, *dealings]]
    assert ledger.counts() == {
        "/p2pgrid/offer/1": 1,
        "/p2pgrid/channel/1": 2,
        "/p2pgrid/order/1": 5,
        "/p2pgrid/meter/1": 8,
        "/p2pgrid/voucher/1": 8,
        "/p2pgrid/receipt/1": 5,
        "/p2pgrid/dispute/1": 0,
        "/p2pgrid/answer/1": 0,
        "/p2pgrid/statement/1": 0,
        "/p2pgrid/invoice/1": 0,
        "/p2pgrid/payment/1": 0,
        "/p2pgrid/set-off/1": 0,
        "/p2pgrid/cycle/1": 0,
        "/p2pgrid/leg/1": 0,
        "/p2pgrid/cycle-verdict/1": 0,
        "evidence": 0,
    }
    assert list(ledger.records(channel=one.id)) == records_of(ones)
    assert list(ledger.records(channel=two.id)) == [one.offer.record, *records_of(twos)]


async def test_a_channels_export_has_only_the_offers_its_orders_name(ledger: AnyLedger) -> None:
    dealings = Dealings()
    other_offer = make_offer(secret_key("somebody"))
    later_offer = make_offer(sequence=2)
    order = dealings.order(offer=later_offer.id)
    await store(ledger, other_offer, dealings.offer, later_offer, dealings.channel, order)
    assert list(ledger.records(channel=dealings.id)) == records_of([later_offer, dealings.channel, order])


async def test_what_is_read_to_be_acted_on_equals_what_was_stored(ledger: AnyLedger) -> None:
    d = Dealings()
    order = d.order()
    meter = d.meter(order)
    voucher = d.voucher(meter)
    proposal = d.proposal(order)
    await store(ledger, d.offer, d.channel, order, meter, voucher, proposal)

    (channel,) = ledger.channels()
    assert (channel.record, channel.id, channel.message) == (d.channel.record, d.channel.id, d.channel.message)
    assert set(channel.signers) == {Role.PROVIDER, Role.CLIENT}
    offer = ledger.offer(d.offer.id)
    assert offer is not None and offer.record == d.offer.record
    kept = ledger.order(d.id, 1)
    assert kept is not None and kept.voucher is not None
    assert (kept.order.record, kept.voucher.record) == (order.record, voucher.record)
    (unsigned,) = ledger.proposals(d.id)
    assert unsigned.record == proposal.record
    assert set(unsigned.signers) == {Role.PROVIDER}


async def test_head_says_where_the_channel_stands(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    assert ledger.head(d.id) == ChannelHead(0, 0, d.channel.id, 0, 0)
    await store(ledger, *d.completed(), *d.completed())
    last = d.receipts[-1]
    total = last.message.channel_total_pico
    assert ledger.head(d.id) == ChannelHead(2, 2, last.id, total, 2, total)
    open_order = d.order()
    proposal = d.proposal(d.order())
    await store(ledger, open_order, proposal)
    assert ledger.head(d.id) == ChannelHead(3, 3, proposal.id, proposal.message.channel_total_pico, 2, total)


async def test_a_countersignature_joins_the_proposal_on_record(ledger: AnyLedger) -> None:
    d = Dealings()
    order = d.order()
    proposal = d.proposal(order)
    await store(ledger, d.offer, d.channel, order, proposal)
    receipt = d.countersign(proposal)
    await ledger.append(receipt)

    stored = ledger.receipt(d.id, 1)
    assert stored is not None and stored.record == receipt.record
    assert set(stored.signers) == {Role.PROVIDER, Role.CLIENT}
    assert ledger.proposals(d.id) == []
    assert ledger.head(d.id).countersigned == 1
    assert list(ledger.records())[-1] == receipt.record
    assert ledger.counts()["/p2pgrid/receipt/1"] == 1


async def test_the_same_record_again_is_no_error_and_takes_no_signature_away(ledger: AnyLedger) -> None:
    d = Dealings()
    records = d.chain(1)
    await store(ledger, *records)
    proposal = records[-1].record.signatures[:1]
    again = Signed(
        records[-1].message,
        Record(records[-1].record.payload_type, records[-1].record.payload, proposal),
        records[-1].id,
        {Role.PROVIDER: PROVIDER.public_key},
    )
    await ledger.append(*records)
    await ledger.append(again)
    assert list(ledger.records()) == records_of(records)


async def test_signatures_that_nobody_checked_are_not_kept(ledger: AnyLedger) -> None:
    d = Dealings()
    order = d.order()
    proposal = d.proposal(order)
    stuffed = Signed(
        proposal.message,
        proposal.record.with_signature(Signature(Role.CLIENT, CLIENT.public_key.raw, bytes(64))),
        proposal.id,
        proposal.signers,
    )
    await store(ledger, d.offer, d.channel, order, stuffed)
    assert [p.record for p in ledger.proposals(d.id)] == [proposal.record]
    assert ledger.head(d.id).countersigned == 0
    receipt = d.countersign(proposal)
    await ledger.append(receipt)
    assert list(ledger.records())[-1] == receipt.record


SLOTS = ["offer", "channel", "order", "meter", "voucher", "receipt number", "receipt's order"]


@pytest.mark.parametrize("slot", SLOTS)
async def test_a_slot_holds_one_record(ledger: AnyLedger, slot: str) -> None:
    d = Dealings()
    records = d.chain(2)
    await store(ledger, *records)
    order, meter, voucher, receipt = records[2:6]
    rivals: dict[str, Signed] = {
        "offer": resigned(d.offer, PROVIDER, Role.PROVIDER, operator="Other GmbH"),
        "channel": resigned(d.channel, PROVIDER, Role.PROVIDER, window_tokens=16),
        "order": resigned(order, CLIENT, Role.CLIENT, max_output_tokens=1),
        "meter": resigned(meter, PROVIDER, Role.PROVIDER, usage=Usage(prompt_tokens=10, output_tokens=255)),
        "voucher": resigned(voucher, CLIENT, Role.CLIENT, amount_pico=1),
        "receipt number": resigned(receipt, PROVIDER, Role.PROVIDER, order_number=9),
        "receipt's order": resigned(receipt, PROVIDER, Role.PROVIDER, receipt_number=9),
    }
    with pytest.raises(SlotTaken) as caught:
        await ledger.append(rivals[slot])
    assert slot.split()[0].removesuffix("'s") in str(caught.value)
    assert list(ledger.records()) == records_of(records)


async def test_a_call_is_stored_whole_or_not_at_all_and_fails_alone(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    first, second, third = d.order(), d.order(), d.order()
    rival = resigned(first, CLIENT, Role.CLIENT, max_output_tokens=1)
    futures = [ledger.append(first), ledger.append(second, rival), ledger.append(third)]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(o) for o in outcomes] == [type(None), SlotTaken, type(None)]
    assert list(ledger.records())[2:] == records_of([first, third])


async def test_futures_are_done_in_the_order_of_the_calls(ledger: AnyLedger) -> None:
    d = Dealings()
    records = d.chain(40)
    done: list[int] = []
    futures = [ledger.append(one) for one in records]
    for index, future in enumerate(futures):
        assert not future.done()
        future.add_done_callback(lambda _, index=index: done.append(index))
    await asyncio.gather(*futures)
    assert done == list(range(len(records)))


async def test_a_cancelled_wait_takes_nothing_back_and_harms_nobody(ledger: AnyLedger) -> None:
    d = Dealings()
    cancelled, other = ledger.append(d.offer), ledger.append(d.channel)
    cancelled.cancel()
    await other
    assert list(ledger.records()) == records_of([d.offer, d.channel])


async def test_a_record_without_its_channel_is_refused(ledger: AnyLedger) -> None:
    d = Dealings()
    with pytest.raises(LedgerError, match="channel that is not on record"):
        await ledger.append(d.order())
    assert list(ledger.records()) == []


async def test_channel_and_order_may_come_in_one_call(ledger: AnyLedger) -> None:
    d = Dealings()
    order = d.order()
    await ledger.append(d.offer, d.channel, order)
    assert ledger.head(d.id).last_order_number == 1


async def test_a_channel_with_one_signature_is_not_yet_a_channel(ledger: AnyLedger) -> None:
    d = Dealings()
    await ledger.append(resigned(d.channel, PROVIDER, Role.PROVIDER))
    assert ledger.channels() == []
    await ledger.append(d.channel)
    assert [c.record for c in ledger.channels()] == [d.channel.record]


async def test_open_orders_are_those_without_receipt_and_outcome(ledger: AnyLedger) -> None:
    d = Dealings()
    orders = [d.order() for _ in range(5)]
    ticks = [d.meter(orders[3], tick, output_tokens=tick * 256) for tick in (1, 2, 3)]
    vouchers = [d.voucher(tick) for tick in ticks]
    await store(ledger, d.offer, d.channel, *orders, *ticks, *vouchers[::-1])
    await ledger.append(d.proposal(orders[0]))
    await ledger.append(d.countersign(d.proposal(orders[1])))
    await ledger.note_outcome(orders[2], "refused:busy")

    open_orders = ledger.open_orders(d.id)
    assert [o.order.record for o in open_orders] == records_of(orders[3:])
    assert open_orders[0].voucher is not None and open_orders[0].voucher.record == vouchers[-1].record
    assert open_orders[1].voucher is None
    closed = ledger.order(d.id, 3)
    assert closed is not None and closed.order.record == orders[2].record


async def test_an_outcome_for_an_order_not_on_record_stores_it_too(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    order = d.order()
    await ledger.note_outcome(order, "refused:busy")
    assert ledger.head(d.id).last_order_number == 1
    assert ledger.open_orders(d.id) == []
    rival = resigned(order, CLIENT, Role.CLIENT, max_output_tokens=1)
    with pytest.raises(SlotTaken):
        await ledger.note_outcome(rival, "refused:busy")


async def test_receipts_for_people_newest_first(ledger: AnyLedger) -> None:
    one, two = Dealings(), Dealings(name="another")
    await store(ledger, *one.chain(3), two.channel, *two.completed())
    proposal = one.proposal(one.order())
    await ledger.append(proposal)

    rows = ledger.receipts()
    assert [r.record_id for r in rows] == [s.id for s in (proposal, two.receipts[0], *reversed(one.receipts[:3]))]
    assert [r.countersigned for r in rows] == [False, True, True, True, True]
    assert rows[1].channel == two.channel.message
    assert rows[0].receipt == proposal.message
    assert [r.record_id for r in ledger.receipts(limit=2)] == [r.record_id for r in rows[:2]]
    assert [r.record_id for r in ledger.receipts(channel=one.id, limit=2)] == [proposal.id, one.receipts[2].id]
    assert ledger.receipts(limit=0) == []


async def test_receipts_by_the_beginning_of_their_id(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, *d.chain(20))
    ids = sorted(receipt.id.hex() for receipt in d.receipts)
    assert [row.record_id.hex() for row in ledger.find_receipts("", limit=100)] == ids
    for one in ids:
        (row,) = ledger.find_receipts(one)
        assert row.record_id.hex() == one and row.countersigned
        assert [r.record_id.hex() for r in ledger.find_receipts(one[0], limit=100)] == [
            other for other in ids if other[0] == one[0]
        ]
    assert ledger.find_receipts("x") == [] == ledger.find_receipts(ids[0] + "0")


async def test_the_records_of_one_order(ledger: AnyLedger) -> None:
    d = Dealings()
    records = d.chain(3, ticks=2)
    await store(ledger, *records)
    number = d.receipts[1].message.order_number
    wanted = [s.record for s in records if getattr(s.message, "order_number", 0) == number]
    assert len(wanted) >= 4
    assert ledger.order_records(d.id, number) == wanted
    assert ledger.order_records(d.id, 99) == []


async def test_evidence_is_kept_once_and_apart(ledger: AnyLedger) -> None:
    d = Dealings()
    forged = Record(d.offer.record.payload_type, d.offer.record.payload + b"\0", d.offer.record.signatures)
    unsigned = Record(forged.payload_type, forged.payload, ())
    await ledger.append_evidence(forged, "the payload is longer than what was signed.")
    await ledger.append_evidence(forged, "again.")
    await ledger.append_evidence(unsigned, "nobody signed it.")
    assert list(ledger.evidence()) == [
        (forged, "the payload is longer than what was signed."),
        (unsigned, "nobody signed it."),
    ]
    assert ledger.counts()["evidence"] == 2
    assert list(ledger.records()) == []


async def test_closing_finishes_what_is_queued_and_ends_the_rest(ledger: AnyLedger) -> None:
    d = Dealings()
    futures = [ledger.append(one) for one in d.chain(10)]
    await ledger.aclose()
    await asyncio.gather(*futures)
    with pytest.raises(LedgerError, match="closed"):
        await ledger.append(d.order())
    with pytest.raises(LedgerError, match="closed"):
        await ledger.append_evidence(d.offer.record, "late.")
    await ledger.aclose()


async def test_disputes_and_their_answers(ledger: AnyLedger) -> None:
    d, other = Dealings(), Dealings(name="another", client=secret_key("another client"))
    await store(ledger, *d.chain(3), *other.chain(1)[1:])
    first, third = make_dispute(d.receipts[0]), make_dispute(d.receipts[2])
    theirs, answer = make_dispute(d.receipts[0], Role.PROVIDER), make_answer(third)
    await store(ledger, third, first, answer, theirs)

    def ids_of(rows: Sequence[DisputeRow | None]) -> list[tuple[bytes, bytes]]:
        return [(one.dispute.id, one.answer.id if one.answer else b"") for one in rows if one is not None]

    rows = [(third.id, answer.id), (first.id, b""), (theirs.id, b"")]
    assert ids_of(ledger.disputes()) == ids_of(ledger.disputes(channel=d.id)) == rows
    assert ids_of(ledger.disputes(unanswered=True)) == rows[1:]
    assert ids_of(ledger.disputes(channel=d.id, unanswered=True)) == rows[1:]
    assert ledger.disputes(channel=other.id) == []
    assert ids_of([ledger.dispute(third.id)]) == ids_of([ledger.dispute(answer.id)]) == rows[:1]
    assert ledger.dispute(d.receipts[0].id) is None
    ids = [(1, first.id), (1, theirs.id), (3, third.id), (3, answer.id)]
    assert ledger.dispute_ids(d.id) == ids
    assert ledger.dispute_ids(d.id, after=1) == ids[2:]
    assert ledger.dispute_ids(d.id, limit=3) == ids[:3]
    assert ledger.dispute_ids(other.id) == []

    order = d.order()
    await store(ledger, order, d.countersign(d.proposal(order, mentions=(third.id, answer.id))))
    assert ledger.mentioned(d.id, 0) == ledger.mentioned(d.id, 3) == {third.id, answer.id}
    assert ledger.mentioned(d.id, 4) == ledger.mentioned(other.id, 0) == set()
    counts = ledger.counts()
    assert (counts["/p2pgrid/dispute/1"], counts["/p2pgrid/answer/1"]) == (3, 1)


async def test_one_dispute_for_each_receipt_and_side_and_one_answer(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, *d.chain(1))
    dispute = make_dispute(d.receipts[0])
    await store(ledger, dispute, dispute)
    with pytest.raises(SlotTaken):
        await ledger.append(make_dispute(d.receipts[0], statement="Another."))
    await store(ledger, make_answer(dispute))
    with pytest.raises(SlotTaken):
        await ledger.append(make_answer(dispute, statement="Another."))
    assert len(ledger.disputes()) == 1


async def test_request_keys_are_kept_with_their_order_and_erased(ledger: AnyLedger) -> None:
    d = Dealings()
    await store(ledger, d.offer, d.channel)
    orders = [d.order() for _ in range(3)]
    for order in orders[:2]:
        ledger.keep_request_key(order, digest(f"key {order.message.order_number}"))
        await store(ledger, order)
    await store(ledger, orders[2])
    assert [ledger.request_key(d.id, number) for number in (1, 2, 3)] == [digest("key 1"), digest("key 2"), None]
    assert ledger.request_keys_before(orders[1].message.ordered_ms) == [(d.id, 1)]
    assert ledger.request_keys_before(orders[1].message.ordered_ms + 1) == [(d.id, 1), (d.id, 2)]
    await ledger.erase_request_keys([(d.id, 1), (d.id, 3), (d.id, 99)])
    assert [ledger.request_key(d.id, number) for number in (1, 2)] == [None, digest("key 2")]
    assert digest("key 2") not in b"".join(one.to_bytes() for one in ledger.records())
