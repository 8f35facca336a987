"""With a link, the client hears by itself what changes; without one, a lost provider is asked for at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from p2pgrid.client import offer_watch
from p2pgrid.errors import Refused, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import listen
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.frame import ResetCode
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.offers import Capacity
from tests.client.seller import BODY, CHAT, FakeNetwork, Shop, TestSeller, shop, until
from tests.client.test_offer_asking import capacity, withdrawal


async def bought(s: Shop) -> str:
    """The operator that served a request."""
    async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
        await answer.assemble()
        return answer.operator


async def watched(seller: TestSeller) -> None:
    await until(lambda: seller.watchers)


async def test_a_new_offer_is_bought_under_at_once() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        await watched(seller)
        seller.offer = seller.make_offer(sequence=2, operator="New")
        seller.watchers[-1].send(Kind.OFFER, seller.offer.record.to_bytes())
        await until(lambda: s.purchaser.book.offers()[0].id == seller.offer.id)
        assert s.network.fetches[seller.peer_id] == 1, "nobody was asked"
        assert await bought(s) == "New"


async def test_what_is_free_is_known_and_decides_between_equals() -> None:
    one, other = TestSeller("one"), TestSeller("other")
    async with shop(one, other) as s:
        for first, second in ((one, other), (other, one)):
            await until(lambda first=first, second=second: first.watchers and second.watchers)
            first.watchers[-1].send(Kind.CAPACITY, capacity(first.offer, free=1).to_bytes())
            second.watchers[-1].send(Kind.CAPACITY, capacity(second.offer, free=0).to_bytes())
            full = s.purchaser.book.presence_of
            await until(
                lambda first=first, second=second, full=full: (
                    full(first.peer_id).free("tiny", first.now_ms()) == 1
                    and full(second.peer_id).free("tiny", second.now_ms()) == 0
                )
            )
            assert await bought(s) == f"Operator {first.name}"


async def test_a_withdrawal_ends_the_buying() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        await watched(seller)
        gone = withdrawal(seller, withdrawn_ms=seller.now_ms())
        s.network.raw[seller.peer_id] = gone
        seller.watchers[-1].send(Kind.WITHDRAWAL, gone)
        await until(lambda: not s.purchaser.book.offers())
        with pytest.raises(Refused):
            await s.purchaser.buy(CHAT, BODY)
        assert not seller.bodies


@pytest.mark.parametrize("fault", ["another's withdrawal", "no record", "another's offer"])
async def test_what_is_false_is_refused_and_the_watch_goes_on(fault: str) -> None:
    seller, other = TestSeller(), TestSeller("other")
    async with shop(seller) as s:
        await watched(seller)
        kind, payload = {
            "another's withdrawal": (Kind.WITHDRAWAL, withdrawal(other, withdrawn_ms=other.now_ms())),
            "no record": (Kind.OFFER, b"x"),
            "another's offer": (Kind.OFFER, other.offer.record.to_bytes()),
        }[fault]
        seller.watchers[-1].send(kind, payload)
        newer = seller.make_offer(sequence=2)
        seller.watchers[-1].send(Kind.OFFER, newer.record.to_bytes())
        book = s.purchaser.book
        await until(lambda: [offer.id for offer in book.offers()] == [newer.id])
        assert sum(book.refused.values()) == 1


async def test_two_offers_under_one_number_on_a_watch_are_evidence() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        await watched(seller)
        seller.watchers[-1].send(Kind.OFFER, seller.make_offer(operator="Another").record.to_bytes())
        await until(lambda: seller.peer_id in s.purchaser.quarantine)
        assert not s.purchaser.book.offers()


@pytest.mark.parametrize("how", ["resets", "says what is no news", "says nonsense", "is silent"])
async def test_a_provider_without_a_watch_is_asked_over_the_link(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer_watch, "SILENCE_S", 0.05)
    seller = TestSeller()
    async with shop(seller) as s:
        await watched(seller)
        talk = seller.watchers[-1]
        if how == "resets":
            talk.stream.reset(ResetCode.REFUSED)
        elif how != "is silent":
            talk.send(Kind.CARDS if how == "says what is no news" else Kind.CAPACITY, b"\x91\xc0")
        await until(lambda: not talk.stream.is_open)
        seller.offer = seller.make_offer(sequence=2, operator="New")
        assert await s.purchaser.book.renew(seller.peer_id) is not None
        assert (seller.seen[Kind.OFFER_REQUEST], s.network.fetches[seller.peer_id]) == (1, 1)
        assert await bought(s) == "New"


class Movable(FakeNetwork):
    """Dials where the offer says, by the port alone."""

    async def dial(self, addresses: Sequence[str], provider: PublicKey, secret_key: SecretKey) -> LinkConnection:
        seller = next(one for one in self.sellers if one.peer_id == provider.peer_id)
        if seller.listener is None or f"/tcp/{seller.address[1]}/tls" not in addresses[0]:
            raise Unreachable(f"nobody is at {addresses[0]}.")
        return await super().dial(addresses, provider, secret_key)


def here(seller: TestSeller, sequence: int) -> None:
    """The seller offers at its port."""
    seller.offer = seller.make_offer(sequence=sequence, addresses=(f"/ip4/127.0.0.1/tcp/{seller.address[1]}/tls",))


async def test_a_provider_is_not_shown_once_its_link_is_lost_and_is_shown_with_the_next() -> None:
    seller = TestSeller()
    await seller.start()
    here(seller, 1)
    host, port = seller.address
    async with shop(seller, network=Movable(seller)) as s:
        await watched(seller)
        s.network.away.add(seller.peer_id)
        await seller.stop()
        await until(lambda: not s.purchaser.book.offers())
        assert s.network.confirmations[seller.peer_id] > 1, "it was asked, and not taken for dead unasked"
        seller.listener = await listen(host, port, seller.key, on_stream=seller.talk)
        await until(lambda: s.purchaser.sessions[seller.peer_id].life.is_ready)
        await until(lambda: s.purchaser.book.offers())
        assert await bought(s)


async def test_a_request_finds_the_only_seller_at_its_new_place() -> None:
    seller = TestSeller()
    await seller.start()
    here(seller, 1)
    async with shop(seller, network=Movable(seller)) as s:
        assert await bought(s)
        s.network.away.add(seller.peer_id)
        await seller.stop()
        await until(lambda: not s.purchaser.book.offers())
        await seller.start()
        here(seller, 2)
        s.network.away.clear()
        # Nothing runs in the background here: it is the request that looks.
        assert await bought(s)
        assert s.network.searches[-1] == "model/tiny"


async def test_a_link_is_dialled_at_once_when_the_offer_names_another_place() -> None:
    seller = TestSeller()
    await seller.start()
    here(seller, 1)
    async with shop(seller, network=Movable(seller)) as s:
        await watched(seller)
        book, session = s.purchaser.book, s.purchaser.sessions[seller.peer_id]
        s.network.away.add(seller.peer_id)
        await seller.stop()
        await until(lambda: session.life._keeper.dials >= 6)
        await seller.start()
        here(seller, 2)
        before = session.life._keeper.dials
        book.add(seller.offer.record.to_bytes(), PeerAddress(seller.peer_id, ()))
        await until(lambda: session.life.is_ready, timeout_s=2)
        assert session.life._keeper.dials <= before + 2


async def test_a_session_does_without_a_capacity_that_names_another_offer() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        await watched(seller)
        book = s.purchaser.book
        seller.watchers[-1].send(Kind.CAPACITY, capacity(seller.offer).to_bytes())
        await until(lambda: book.presence_of(seller.peer_id).capacity)
        before, told = book.presence_of(seller.peer_id), Capacity(sequence=99, models=())
        seller.watchers[-1].send(Kind.CAPACITY, told.to_bytes())
        await until(lambda: book.presence_of(seller.peer_id).capacity == told)
        assert book.presence_of(seller.peer_id).confirmed_ms == before.confirmed_ms
