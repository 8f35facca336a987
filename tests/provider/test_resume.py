"""The provider's half of resuming a channel, over real links: its stages, and who breaks them."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import Channels, Held, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind
from tests.factories import secret_key
from tests.provider.rig import Buyer, Rig, limits, provider, receive, until
from tests.provider.test_interruption import until_idle, vouched

DAY_MS = 86_400_000


async def interrupted(rig: Rig) -> Buyer:
    """A client whose link was lost while an order ran, on a new link."""
    buyer = await Buyer.connect(rig)
    placed = await vouched(buyer)
    buyer.link.abort()
    await placed.cut()
    await until_idle(rig)
    await buyer.reconnect()
    return buyer


async def begun(buyer: Buyer) -> tuple[Any, StreamReader]:
    """A resume to the provider's RESUMED and its records."""
    stream, reader = buyer.stream()
    stream.send(Kind.RESUME, buyer.resume_frame())
    kind, payload = await receive(reader)
    assert kind == Kind.RESUMED
    for _ in range(parse_frame(payload, Resumed).records):
        assert (await receive(reader))[0] == Kind.RECORD
    return stream, reader


async def test_no_order_before_the_channel_is_resumed() -> None:
    async with provider() as rig:
        buyer = await interrupted(rig)
        assert (await buyer.order(max_tokens=4).send().refused()).code == "not-resumed"
        await buyer.resume()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 2


async def test_a_resume_that_stops_in_the_midst_leaves_nothing_behind() -> None:
    async with provider() as rig:
        buyer = await interrupted(rig)
        _, reader = await begun(buyer)
        assert (await buyer.order(max_tokens=4).send().refused()).code == "not-resumed"
        _, (receipt,) = await buyer.resume()
        assert receipt.message.status is Status.INTERRUPTED
        with pytest.raises(Exception, match="once more"):
            await reader.receive()


async def test_no_resume_while_orders_of_the_link_are_open() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        placed = await vouched(buyer)
        kind, payload = await buyer.ask(Kind.RESUME, buyer.resume_frame())
        assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "busy")
        placed.cancel()
        assert (await placed.to_end()).status is Status.CANCELLED


async def test_no_receipt_is_made_while_the_client_holds_more() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await interrupted(rig)
        stream, reader = await begun(buyer)
        stream.send(Kind.RECORDS, Records(records=0, is_all=False).to_bytes())
        kind, payload = await receive(reader)
        assert (kind, parse_frame(payload, Proposals)) == (Kind.PROPOSALS, Proposals(proposals=0, is_all=False))
        assert ledger.head(buyer.books.id).last_receipt_number == 0
        assert (await buyer.order(max_tokens=4).send().refused()).code == "not-resumed"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([(Kind.RECORD, b"")], "out of turn"),
        ([(Kind.COUNTERSIGNATURE, b"")], "out of turn"),
        ([(Kind.RECORDS, b"\x00")], "no Records"),
        ([(Kind.RECORDS, Records(records=1, is_all=True).to_bytes()), (Kind.RECORD, b"nonsense")], "record"),
        ([(Kind.RECORDS, Records(records=1, is_all=True).to_bytes()), (Kind.RECORDS, b"")], "out of turn"),
        (
            [(Kind.RECORDS, Records(records=1024, is_all=True).to_bytes()), *[(Kind.RECORD, bytes(65_000))] * 17],
            "record|over 1048576 bytes",
        ),
    ],
)
async def test_what_no_honest_client_sends_cuts_the_exchange(messages: list[tuple[int, bytes]], reason: str) -> None:
    async with provider() as rig:
        buyer = await interrupted(rig)
        stream, reader = await begun(buyer)
        for kind, payload in messages:
            stream.send(kind, payload)
        with pytest.raises(Exception, match=reason):
            while await reader.receive():
                pass
        _, receipts = await buyer.resume()
        assert len(receipts) == 1


async def test_a_receipt_that_the_provider_never_made_is_a_fork() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=4).send().to_end()
        for number, record_id in ((1, bytes(32)), (2, bytes(32))):
            held = Held(last_order_number=1, last_receipt_number=number, last_receipt=record_id, open_orders=())
            stream, reader = buyer.stream()
            stream.send(Kind.RESUME, Resume(channel=buyer.channel.record.to_bytes(), held=held).to_bytes())
            kind, payload = await receive(reader)
            if kind == Kind.RESUMED:
                stream.send(Kind.RECORDS, Records(records=0, is_all=True).to_bytes())
                kind, payload = await receive(reader)
            assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "forked-chain")
        await buyer.resume()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 2


async def test_a_disputed_proposal_is_on_record_and_is_not_proposed_again() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await interrupted(rig)
        buyer.books.countersigned_pico = 0
        _, (receipt,) = await buyer.resume(sign=False)
        stream, reader = await begun(buyer)
        stream.send(Kind.RECORDS, Records(records=0, is_all=True).to_bytes())
        assert [(await receive(reader))[0] for _ in range(2)] == [Kind.PROPOSALS, Kind.RECEIPT]
        dispute = buyer.dispute(receipt)
        stream.send(Kind.DISPUTE, dispute.record.to_bytes())
        stream.end()
        assert await reader.receive() is None
        assert [row.dispute.id for row in ledger.disputes()] == [dispute.id]
        assert rig.tally.disputes == 1
        buyer.books.append(receipt)
        buyer.books.note_disputed(receipt.message, 0)
        buyer.books.note_held(dispute.id, dispute.message)
        assert (await buyer.resume())[1] == []
        following = await buyer.order(max_tokens=4).send().to_end()
        assert (following.receipt_number, following.mentions) == (2, (dispute.id,))


async def test_a_client_that_stays_away_is_billed_what_it_vouched_for() -> None:
    ledger = MemoryLedger()
    async with provider(ledger, limits=limits(away_s=86_400.0)) as rig:
        buyer = await Buyer.connect(rig)
        placed = await vouched(buyer)
        buyer.link.abort()
        await until_idle(rig)
        assert await rig.shop.channels.close_overdue() == 0
        rig.clock.ahead_ms += DAY_MS + 1
        assert await rig.shop.channels.close_overdue() == 1
        assert await rig.shop.channels.close_overdue() == 0
        (receipt,) = ledger.proposals(buyer.books.id)
        assert receipt.message.status is Status.INTERRUPTED
        assert placed.machine.vouched.covers(receipt.message.usage)
        rig.clock.ahead_ms -= DAY_MS
        await buyer.reconnect()
        buyer.clock_ahead_ms += DAY_MS
        _, (again,) = await buyer.resume()
        assert again.id == receipt.id


async def test_a_channel_with_an_order_under_way_is_not_overdue() -> None:
    async with provider(limits=limits(away_s=0.0)) as rig:
        buyer = await Buyer.connect(rig)
        placed = await vouched(buyer)
        assert await rig.shop.channels.close_overdue() == 0
        placed.cancel()
        await placed.to_end()


async def test_a_client_that_lost_its_ledger_is_told_its_channels_and_no_others() -> None:
    async with provider() as rig:
        buyer, other = await Buyer.connect(rig), await Buyer.connect(rig, secret_key("another"))
        for one in (buyer, other):
            kind, payload = await one.ask(Kind.CHANNELS_REQUEST, b"")
            assert kind == Kind.CHANNELS
            assert parse_frame(payload, Channels).channels == (one.channel.record.to_bytes(),)
            assert set(one.channel.signers) == {Role.PROVIDER, Role.CLIENT}


async def test_after_a_ledger_that_failed_the_channel_is_resumed() -> None:
    ledger = MemoryLedger()
    async with provider(ledger) as rig:
        buyer = await Buyer.connect(rig)
        ledger.fail_append()
        await buyer.order(max_tokens=4).send().cut()
        await until(lambda: not rig.shop.channels.is_broken)
        buyer.forget_orders()
        assert (await buyer.order(max_tokens=4).send().refused()).code == "not-resumed"
        await buyer.resume()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 1
