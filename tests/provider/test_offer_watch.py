"""A client that watches the offer hears of every change on its stream, and of what is free."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.net.stream import Stream
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.record import parse_record
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.offers import Capacity, ModelCapacity
from p2pgrid.proto.withdrawal import verify_withdrawal, withdraws
from p2pgrid.provider import offer_news, offer_watch
from tests.factories import PROVIDER
from tests.provider.rig import MODEL, Buyer, provider, receive, until


def watching(buyer: Buyer) -> tuple[Stream, StreamReader]:
    stream, reader = buyer.stream()
    stream.send(Kind.OFFER_WATCH, b"")
    return stream, reader


async def capacity(reader: StreamReader) -> Capacity:
    kind, payload = await receive(reader)
    assert kind == Kind.CAPACITY
    return parse_frame(payload, Capacity)


def free(sequence: int, n: int) -> Capacity:
    return Capacity(sequence=sequence, models=(ModelCapacity(model=MODEL, free=n),))


async def test_a_watcher_hears_of_offers_and_of_the_withdrawal_at_once() -> None:
    async with provider(concurrency=3) as rig:
        buyer = await Buyer.connect(rig)
        _, reader = watching(buyer)
        assert await receive(reader) == (Kind.OFFER, rig.offer.record.to_bytes())
        assert await capacity(reader) == free(rig.offer.message.sequence, 3)
        rig.shop.news.changed()
        second = await rig.shop.offers.publish(rig.engines.entries, ["/ip4/127.0.0.1/tcp/2/tls"])  # type: ignore[attr-defined]
        rig.shop.news.changed()
        kind, payload = await receive(reader)
        assert (kind, parse_record(payload).id) == (Kind.OFFER, second.id), "nothing is told twice"
        assert await capacity(reader) == free(second.message.sequence, 3)
        rig.shop.admission.is_draining = True
        rig.shop.offers.withdraw()  # type: ignore[attr-defined]
        rig.shop.news.changed()
        kind, payload = await receive(reader)
        assert kind == Kind.WITHDRAWAL
        assert withdraws(
            verify_withdrawal(payload, PROVIDER.public_key.peer_id, buyer.now_ms()).message, second.message
        )
        assert await capacity(reader) == Capacity(sequence=0, models=())


async def test_what_is_free_is_told_as_it_changes_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer_news, "CAPACITY_INTERVAL_S", 0.02)
    async with provider(concurrency=3) as rig:
        telling = asyncio.create_task(rig.shop.news.run())
        buyer = await Buyer.connect(rig)
        _, reader = watching(buyer)
        sequence = rig.offer.message.sequence
        assert (await receive(reader))[0] == Kind.OFFER
        assert await capacity(reader) == free(sequence, 3)
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        assert await capacity(reader) == free(sequence, 2)
        placed.cancel()
        assert await capacity(reader) == free(sequence, 3)
        rig.engines.models[MODEL].is_up = False
        assert await capacity(reader) == free(sequence, 0)
        monkeypatch.setattr(offer_watch, "CONFIRM_INTERVAL_S", 0.1)
        for _ in range(3):
            assert await capacity(reader) == free(sequence, 0), "the same again: it still stands"
        telling.cancel()


async def test_a_link_has_one_watcher_and_lets_go_of_it() -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        first, reader = watching(buyer)
        assert (await receive(reader))[0] == Kind.OFFER
        await capacity(reader)
        second, other = watching(buyer)
        assert (await receive(other))[0] == Kind.OFFER
        assert await reader.receive() is None, "the first is ended"
        first.end()
        assert len(rig.shop.news) == 1
        second.end()
        await until(lambda: not len(rig.shop.news))
        watching(buyer)
        await until(lambda: len(rig.shop.news))
        await buyer.link.aclose()
        await until(lambda: not len(rig.shop.news))
        assert rig.tally.faults == 0


@pytest.mark.parametrize("fault", ["a body", "another message"])
async def test_what_breaks_the_rules_is_a_fault(fault: str) -> None:
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        stream, _ = buyer.stream()
        stream.send(Kind.OFFER_WATCH, b"x" if fault == "a body" else b"")
        if fault == "another message":
            stream.send(Kind.OFFER_WATCH, b"")
        await until(lambda: rig.tally.faults == 1)
        assert not len(rig.shop.news)
