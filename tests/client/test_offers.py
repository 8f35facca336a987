"""The book of offers: what it takes in, keeps, renews and forgets."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.client.offer_cache import read_cache, write_cache
from p2pgrid.client.offer_store import verify_offer
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.presence import DEAD_AFTER_FAILURES
from p2pgrid.errors import InvalidRecord, Unreachable
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Record, Role, Signed
from tests.client.seller import FakeNetwork, TestSeller
from tests.factories import CLIENT, NOW_MS, PROVIDER, make_offer, resigned

PEER = PeerAddress(PROVIDER.public_key.peer_id, ("/ip4/127.0.0.1/tcp/1",))


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


def raw(offer: Signed[Offer]) -> bytes:
    return offer.record.to_bytes()


def book(*sellers: TestSeller, **options: Any) -> tuple[OfferBook, FakeNetwork, Clock]:
    network, clock = FakeNetwork(*sellers), Clock()
    return OfferBook(network, now_ms=clock, **options), network, clock


def seller(name: str = "seller", **changes: Any) -> TestSeller:
    one = TestSeller(name)
    one.offer = one.make_offer(valid_from_ms=NOW_MS - 1000, valid_until_ms=NOW_MS + 3_600_000, **changes)
    return one


def altered(offer: Signed[Offer]) -> bytes:
    """Another number, under the signature that stood there."""
    other = resigned(offer, PROVIDER, Role.PROVIDER, sequence=offer.message.sequence + 1)
    return Record(other.record.payload_type, other.record.payload, offer.record.signatures).to_bytes()


def forged() -> Signed[Offer]:
    """Another's signature under the provider's name."""
    return resigned(make_offer(), CLIENT, Role.PROVIDER)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"),
        (b"no record", "malformed"),
        (raw(make_offer())[:-1], "malformed"),
        (altered(make_offer()), "bad-signature"),
        (raw(forged()), "wrong-key"),
        (raw(make_offer(CLIENT)), "wrong-key"),
        (raw(make_offer(valid_from_ms=0, valid_until_ms=NOW_MS)), "not-in-force"),
        (raw(make_offer(valid_from_ms=NOW_MS + 120_001)), "not-in-force"),
    ],
)
def test_what_is_no_offer(data: bytes, code: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        verify_offer(data, PEER.peer_id, NOW_MS)
    assert caught.value.code == code


def test_a_clock_two_minutes_slow_is_tolerated() -> None:
    assert verify_offer(raw(make_offer(valid_from_ms=NOW_MS + 120_000)), PEER.peer_id, NOW_MS)


def test_the_newest_counts() -> None:
    offers, _, _ = book()
    first, second = make_offer(), make_offer(sequence=2)
    assert offers.add(raw(first), PEER).id == first.id
    assert offers.add(raw(second), PEER).id == second.id
    assert offers.add(raw(first), PEER).id == second.id
    assert [offer.id for offer in offers.offers()] == [second.id]


def test_two_offers_under_one_number_are_evidence() -> None:
    evidence: list[Record] = []
    offers, _, _ = book(on_conflict=lambda peer_id, records, reason: evidence.extend(records))
    one, other = make_offer(), make_offer(operator="Another")
    offers.add(raw(one), PEER)
    with pytest.raises(InvalidRecord, match="two offers"):
        offers.add(raw(other), PEER)
    assert [record.id for record in evidence] == [one.id, other.id]
    assert offers.offers() == [] and offers.offer_of(PEER.peer_id) is None
    with pytest.raises(InvalidRecord, match="two offers"):
        offers.add(raw(make_offer(sequence=3)), PEER)
    offers.unbar(PEER.peer_id)
    assert offers.add(raw(make_offer(sequence=3)), PEER)


def test_an_offer_past_its_time_is_gone() -> None:
    offers, _, clock = book()
    offer = offers.add(raw(make_offer()), PEER)
    clock.ms = offer.message.valid_until_ms - 1
    assert offers.offers()
    clock.ms += 1
    assert not offers.offers() and offers.offer_of(PEER.peer_id) is None


async def test_searching_fetches_what_is_new_or_half_over() -> None:
    one = seller()
    offers, network, clock = book(one)
    assert await offers.search() == 1
    await offers.search()
    assert network.fetches[one.peer_id] == 1
    clock.ms += 1_900_000
    one.offer = one.make_offer(sequence=2, valid_until_ms=clock.ms + 3_600_000)
    await offers.search()
    assert network.fetches[one.peer_id] == 2
    assert offers.offers()[0].message.sequence == 2


async def test_a_link_is_asked_before_the_network() -> None:
    one = seller()
    offers, network, _ = book(one)
    await offers.search()
    newer = one.make_offer(sequence=2)

    async def over_link() -> bytes:
        return raw(newer)

    offers.ask_over_link = lambda peer_id: over_link() if peer_id == one.peer_id else None
    assert (await offers.renew(one.peer_id)) is not None
    assert offers.offers()[0].id == newer.id and network.fetches[one.peer_id] == 1


async def test_a_forged_offer_is_named_and_not_taken() -> None:
    one = seller()
    offers, network, _ = book(one)
    network.raw[one.peer_id] = raw(forged())
    await offers.search()
    assert not offers.offers() and "signed by" in offers.last_fault


async def test_the_dead_are_dropped_and_not_asked_all_the_time() -> None:
    one = seller()
    offers, network, clock = book(one)
    await offers.search()
    network.away.add(one.peer_id)
    for _ in range(DEAD_AFTER_FAILURES):
        assert offers.offer_of(one.peer_id) is not None, "it may still be dialled"
        await offers.renew(one.peer_id)
        assert not offers.offers(), "and is shown no more"
    assert offers.offer_of(one.peer_id) is None
    asked = network.fetches[one.peer_id]
    await offers.search()
    assert network.fetches[one.peer_id] == asked
    network.away.clear()
    clock.ms += 60_000
    await offers.search()
    assert offers.offers()


async def test_a_network_that_is_not_there() -> None:
    class Nowhere(FakeNetwork):
        async def find_providers(
            self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
        ) -> list[PeerAddress]:
            raise Unreachable("no bootstrap peer answered.")

    offers = OfferBook(Nowhere(), now_ms=Clock())
    with pytest.raises(Unreachable, match="bootstrap"):
        await offers.search()


async def test_the_cache_is_read_and_verified_again(tmp_path: Path) -> None:
    path = tmp_path / "offers.json"
    one, other = seller("one"), seller("other")
    offers, _, _ = book(one, other, cache=path)
    async with offers:
        await offers.search()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cached = msgspec.json.decode(path.read_bytes())
    cached["offers"][0]["peer_id"] = PEER.peer_id
    path.write_bytes(msgspec.json.encode(cached))
    again, network, _ = book(cache=path)
    await again._load()
    assert again.offers() == [], "nobody has confirmed it"
    assert len(again.worth_dialling()) == 1 and len(again.offers_of("tiny")) == 1
    assert not network.fetches


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"offers": [{"peer_id": "x"}]}', b"\xff\xfe"])
def test_a_damaged_cache_holds_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "offers.json"
    path.write_bytes(content)
    assert read_cache(path) == []


def test_the_cache_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "offers.json"
    assert write_cache(path, [(PEER, b"\x00\xff")])
    assert read_cache(path) == [(PEER, b"\x00\xff")]
    assert not write_cache(tmp_path / "none" / "offers.json", [])


def test_a_full_book_forgets_what_has_failed_and_else_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pgrid.client.offer_store.MAX_OFFERS", 3)
    sellers = [seller(f"seller {n}") for n in range(7)]
    offers, _, _ = book(*sellers)

    def add(n: int) -> None:
        offers.add(raw(sellers[n].offer), PeerAddress(sellers[n].peer_id, ()))

    def known() -> list[int]:
        return [n for n, one in enumerate(sellers) if offers.offer_of(one.peer_id) is not None]

    for n in range(4):
        add(n)
    assert known() == [1, 2, 3], "the oldest of those that are well"
    offers.note_dead(sellers[2].peer_id)
    for _ in range(2):
        offers.note_dead(sellers[3].peer_id)
    add(4)
    assert known() == [1, 2, 4], "the one that failed twice"
    add(2)
    add(5)
    assert known() == [2, 4, 5], "one that is back counts as well"
    for _ in range(DEAD_AFTER_FAILURES):
        offers.note_dead(sellers[5].peer_id)
    add(6)
    assert known() == [2, 4, 6], "the one without an offer"
