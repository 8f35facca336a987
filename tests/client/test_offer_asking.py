"""The book asks again and again: who is due, how many at a time, and where, once a provider has moved or left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.client import offers as offers_module
from p2pgrid.client.ask_schedule import FIRST_ASKS, OLDEST_SHARE, WANTED_MS, Due
from p2pgrid.client.market import Market
from p2pgrid.client.offer_cache import write_cache
from p2pgrid.client.offer_query import OfferQuery
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.presence import ASK_INTERVAL_MS
from p2pgrid.client.purchase import purchase_of
from p2pgrid.client.quarantine import Quarantine
from p2pgrid.client.standings import Standings
from p2pgrid.client.wishes import Wishes
from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.lookup_keys import model_key
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ModelOffer, Offer
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.wire.offers import Capacity, ModelCapacity
from p2pgrid.proto.withdrawal import Withdrawal
from tests.client.seller import FakeNetwork, TestSeller, until
from tests.client.test_offers import Clock, book, raw, seller
from tests.factories import NOW_MS, secret_key

OLD, NEW = "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/2"


def capacity(offer: Signed[Offer], free: int = 3) -> Capacity:
    models = tuple(ModelCapacity(model=entry.model, free=free) for entry in offer.message.models)
    return Capacity(sequence=offer.message.sequence, models=models)


def talking(name: str = "seller") -> TestSeller:
    """A seller that says what is free."""
    one = seller(name)
    one.capacity = capacity(one.offer)
    return one


def renamed(one: TestSeller, model: str) -> ModelOffer:
    """What it sells, under another name."""
    (entry,) = one.offer.message.models
    return msgspec.structs.replace(entry, model=model)


def withdrawal(one: TestSeller, *, key: SecretKey | None = None, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "provider": one.key.public_key.raw,
        "sequence": one.offer.message.sequence + 1,
        "withdrawn_ms": NOW_MS,
    }
    return sign_message(Withdrawal(**{**fields, **changes}), Role.PROVIDER, key or one.key).record.to_bytes()


def flipped(record: bytes) -> bytes:
    """A signature that does not fit."""
    return record[:-1] + bytes([record[-1] ^ 1])


class Moving(FakeNetwork):
    """A network whose sellers are each at one place at a time."""

    def __init__(self, *sellers: TestSeller) -> None:
        super().__init__(*sellers)
        self.said = {one.peer_id: (OLD,) for one in sellers}
        """Where look-ups say that they are."""
        self.really = {one.peer_id: OLD for one in sellers}

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        self.searches.append(key)
        return [PeerAddress(peer_id, addresses) for peer_id, addresses in self.said.items()]

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        self.dialled(peer)
        return await super().fetch_offer(peer, timeout_s=timeout_s)

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        self.dialled(peer)
        return await super().fetch_capacity(peer, timeout_s=timeout_s)

    def dialled(self, peer: PeerAddress) -> None:
        if not any(address.startswith(self.really[peer.peer_id]) for address in peer.addresses):
            raise Unreachable(f"{peer.peer_id} is not at {peer.addresses}.")


# -- confirming --------------------------------------------------------------------------------------------------------


async def ask(offers: OfferBook, one: TestSeller) -> None:
    """As the background does when the provider is due."""
    await asyncio.shield(offers._fetch_task(offers.address_of(one.peer_id), is_confirming=True))


async def test_who_says_that_its_offer_stands_is_not_asked_for_it() -> None:
    one = talking()
    offers, network, clock = book(one)
    await offers.search()
    assert (network.fetches[one.peer_id], network.confirmations[one.peer_id]) == (1, 1)
    assert offers.presence_of(one.peer_id).free("tiny", clock.ms) == 3
    clock.ms += ASK_INTERVAL_MS
    await ask(offers, one)
    assert (network.fetches[one.peer_id], network.confirmations[one.peer_id]) == (1, 2)
    assert offers.presence_of(one.peer_id).confirmed_ms == clock.ms


async def test_another_number_or_an_offer_half_over_is_asked_for() -> None:
    one = talking()
    offers, network, clock = book(one)
    await offers.search()
    one.offer = one.make_offer(sequence=2, operator="Changed")
    one.capacity = capacity(one.offer)
    await ask(offers, one)
    assert network.fetches[one.peer_id] == 2
    assert offers.offers()[0].message.operator == "Changed"
    clock.ms += 1_900_000
    await ask(offers, one)
    assert network.fetches[one.peer_id] == 3, "there should be a newer one"


async def test_who_does_not_say_what_is_free_is_asked_for_its_offer() -> None:
    one = seller()
    offers, network, clock = book(one)
    await offers.search()
    clock.ms += ASK_INTERVAL_MS
    await ask(offers, one)
    assert network.fetches[one.peer_id] == 2
    assert offers.presence_of(one.peer_id).is_live(clock.ms)


async def test_nonsense_in_place_of_a_capacity_confirms_nothing() -> None:
    one = talking()
    offers, _, _ = book(one)
    await offers.search()

    class Nonsense:
        def to_bytes(self) -> bytes:
            return b"\x93\x00"

    one.capacity = Nonsense()  # type: ignore[assignment]
    await ask(offers, one)
    assert offers.offers() == [] and offers.refused["protocol-violation"] == 1


async def test_a_link_is_asked_before_the_network_and_again_when_it_fails() -> None:
    one = talking()
    offers, network, _ = book(one)
    await offers.search()

    async def lost() -> bytes:
        raise Unreachable("the link is lost.")

    offers.ask_over_link = lambda _: lost()
    await ask(offers, one)
    assert not offers.presence_of(one.peer_id).is_here and network.confirmations[one.peer_id] == 1


async def test_the_background_asks_those_that_are_remembered_and_those_that_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers_module, "ASK_TICK_S", 0.005)
    known, away = talking("known"), talking("away")
    path = tmp_path / "offers.json"
    places = [PeerAddress(one.peer_id, (OLD,)) for one in (known, away)]
    write_cache(path, [(places[0], raw(known.offer)), (places[1], raw(away.offer))])
    offers, network, clock = book(known, away, cache=path)
    network.away.add(away.peer_id)
    seen: list[int] = []
    async with offers:
        assert offers.offers() == []
        await until(lambda: len(offers.offers()) == 1)
        assert offers.offers()[0].id == known.offer.id
        await until(lambda: offers.presence_of(away.peer_id).failures)
        for _ in range(3):
            seen.append(network.confirmations[known.peer_id])
            clock.ms += ASK_INTERVAL_MS
            await until(lambda: network.confirmations[known.peer_id] > seen[-1])
            await until(lambda: offers.presence_of(known.peer_id).confirmed_ms == clock.ms)
    assert network.fetches[known.peer_id] <= 1, "that it stands is enough"


async def test_who_is_due_and_what_it_sells(monkeypatch: pytest.MonkeyPatch) -> None:
    here, late, silent, empty, barred, asked = (talking(f"seller {n}") for n in range(6))
    offers, _, clock = book()
    for one in (here, late, silent, barred, asked):
        offers.add(raw(one.offer), PeerAddress(one.peer_id, (OLD,)))
    offers.note_fault(PeerAddress(empty.peer_id, (OLD,)))
    offers.note_dead(silent.peer_id)
    offers._barred.add(barred.peer_id)
    offers._fetching[asked.peer_id] = asyncio.get_running_loop().create_future()  # type: ignore[assignment]
    due_ms = clock.ms + ASK_INTERVAL_MS
    clock.ms += ASK_INTERVAL_MS - 1
    offers.confirm(here.peer_id, capacity(here.offer))
    assert {one.peer_id for one in offers._due()} == {silent.peer_id, empty.peer_id}
    clock.ms += 1
    due = {one.peer_id: one for one in offers._due()}
    assert due.keys() == {late.peer_id, silent.peer_id, empty.peer_id}
    assert due[late.peer_id] == Due(late.peer_id, due_ms, False, ["tiny"], "LT")
    assert due[silent.peer_id].is_failing and due[empty.peer_id] == Due(empty.peer_id, NOW_MS + 2_000, True)


async def test_however_many_are_due_so_many_are_asked_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    offers, _, _ = book(asks_per_s=200)
    asked, at_once = list[float](), list[int]()
    loop, choose = asyncio.get_running_loop(), offers._schedule.choose

    def note_how_many(*due: Any, **now: Any) -> list[str]:
        chosen = list(choose(*due, **now))
        at_once.append(len(chosen))
        return chosen

    monkeypatch.setattr(offers_module, "ASK_TICK_S", 0.01)
    monkeypatch.setattr(offers._schedule, "choose", note_how_many)
    monkeypatch.setattr(offers, "_fetch_task", lambda *_, **__: asked.append(loop.time()))
    for n in range(60):
        one = talking(f"seller {n}")
        offers.remember(raw(one.offer), PeerAddress(one.peer_id, (OLD,)))
    began = loop.time()
    asking = asyncio.create_task(offers._keep_asking())
    await until(lambda: len(asked) >= 80)
    asking.cancel()
    assert at_once[0] == FIRST_ASKS, "at first, so many at once"
    assert asked[79] - began >= (80 - FIRST_ASKS) / (200 * OLDEST_SHARE) * 0.9


async def test_what_is_wanted_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers_module, "ASK_TICK_S", 0.005)
    sellers = sorted((talking(f"seller {n}") for n in range(FIRST_ASKS + 2)), key=lambda one: one.peer_id)
    offers, network, clock = book(*sellers, asks_per_s=0.01)
    rare = sellers[-1]
    rare.offer = rare.make_offer(models=(renamed(rare, "rare"),))
    rare.capacity = capacity(rare.offer)
    for one in sellers:
        offers.remember(raw(one.offer), PeerAddress(one.peer_id, (OLD,)))
    asking = asyncio.create_task(offers._keep_asking())
    await until(lambda: network.confirmations.total() == FIRST_ASKS and not offers._fetching)
    assert not network.confirmations[rare.peer_id]
    offers.wanted.note("rare", (), clock.ms)
    await until(lambda: offers.presence_of(rare.peer_id).is_live(clock.ms))
    asking.cancel()
    assert network.confirmations.total() == FIRST_ASKS + 1


def test_a_request_and_a_look_at_the_list_make_offers_wanted() -> None:
    offers, _, clock = book()
    one, pinned = talking("one"), talking("pinned")
    offers.add(raw(one.offer), PeerAddress(one.peer_id, (OLD,)))
    standings = Standings({}, Quarantine(), clock)
    market = Market(offers, None, standings, wishes=Wishes(), road_to=lambda _: None, now_ms=clock)
    purchase = purchase_of("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]})

    def ranks() -> list[int]:
        offers.wanted.expire(clock.ms)
        other = Due("other", 0, False, ("tiny",), "DE")
        dues = (Due(one.peer_id, 0, False, ("tiny",), "LT"), other, Due(pinned.peer_id, 0, False, ("other",), "LT"))
        return [offers.wanted.rank(due) for due in dues]

    market.models()
    assert ranks() == [3, 3, 3], "a page that counts models wants none"
    market.models(OfferQuery())
    assert ranks() == [2, 2, 2]
    clock.ms += WANTED_MS
    market.models(OfferQuery(wishes=Wishes(countries=frozenset({"DE"}))))
    assert ranks() == [3, 2, 3]
    clock.ms += WANTED_MS
    market.choose(purchase, Wishes())
    assert ranks() == [0, 1, 3], "who would be ordered from, before others who sell the model"
    clock.ms += WANTED_MS
    market.choose(purchase, Wishes(provider=pinned.peer_id))
    assert ranks()[1:] == [3, 0]


# -- who leaves --------------------------------------------------------------------------------------------------------


async def test_a_withdrawal_drops_the_offer_and_no_older_one_comes_back() -> None:
    one = talking()
    offers, network, _ = book(one)
    await offers.search()
    gone = withdrawal(one)
    network.raw[one.peer_id] = gone
    one.capacity = Capacity(sequence=0, models=())
    await ask(offers, one)
    assert offers.offers() == [] and offers.offer_of(one.peer_id) is None
    with pytest.raises(InvalidRecord, match="has withdrawn"):
        offers.add(raw(one.offer), PeerAddress(one.peer_id, ()))
    assert offers.refused["withdrawn"] == 1
    back = one.make_offer(sequence=2)
    offers.add(raw(back), PeerAddress(one.peer_id, ()))
    offers.withdraw(gone, PeerAddress(one.peer_id, ()))
    assert [offer.id for offer in offers.offers()] == [back.id], "an old withdrawal silences nobody"
    assert offers.refused["older"] == 1


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda one: withdrawal(one, key=secret_key("another")), "wrong-key"),
        (
            lambda one: withdrawal(one, provider=secret_key("another").public_key.raw, key=secret_key("another")),
            "wrong-key",
        ),
        (lambda one: flipped(withdrawal(one)), "bad-signature"),
        (lambda one: withdrawal(one, withdrawn_ms=NOW_MS + 120_001), "not-in-force"),
        (lambda one: b"\xc1", "malformed"),
    ],
)
async def test_nobody_withdraws_for_another(make: Callable[[TestSeller], bytes], code: str) -> None:
    one = talking()
    offers, _, _ = book(one)
    await offers.search()
    with pytest.raises(InvalidRecord) as caught:
        offers.take(make(one), PeerAddress(one.peer_id, ()))
    assert caught.value.code == code and offers.refused == {code: 1}
    assert len(offers.offers()) == 1


async def test_a_withdrawal_of_a_stranger_is_nothing() -> None:
    one = seller()
    offers, _, _ = book()
    offers.take(withdrawal(one), PeerAddress(one.peer_id, ()))
    assert offers._entries == {}


async def test_who_says_that_it_has_no_offer_is_dropped() -> None:
    one = seller()
    offers, _, _ = book(one)
    await offers.search()

    async def nothing() -> bytes:
        raise Refused("withdrawn", "this provider offers nothing now.")

    offers.ask_over_link = lambda _: nothing()
    await ask(offers, one)
    assert offers.offer_of(one.peer_id) is None


# -- who moves ---------------------------------------------------------------------------------------------------------


async def test_the_address_of_the_last_look_up_comes_first_and_the_offer_s_own_are_tried_too() -> None:
    one = seller()
    own = [f"/ip4/192.0.2.{n}/tcp/9/p2p/{one.peer_id}" for n in range(5)]
    one.offer = one.make_offer(addresses=(*own, "/ip4/192.0.2.9/tcp/1/tls"))
    offers, _, _ = book(one)
    offers.add(raw(one.offer), PeerAddress(one.peer_id, (OLD,)))
    assert offers.address_of(one.peer_id).addresses == (OLD, *own[:3])
    lies = tuple(f"/ip4/198.51.100.{n}/tcp/1" for n in range(8))
    assert offers.found(PeerAddress(one.peer_id, lies))
    assert offers.address_of(one.peer_id).addresses == (*lies[:5], *own[:3]), "a liar cannot crowd them out"
    assert not offers.found(PeerAddress(one.peer_id, lies[::-1])), "the same places"
    assert not offers.found(PeerAddress(one.peer_id, ()))


async def test_a_provider_that_moved_is_looked_up_as_soon_as_it_does_not_answer() -> None:
    one = talking()
    network, clock = Moving(one), Clock()
    offers = OfferBook(network, now_ms=clock)
    back: list[str] = []
    offers.on_back = back.append
    await offers.search()
    assert back == [one.peer_id]
    network.really[one.peer_id] = NEW
    offers.doubt(one.peer_id)
    await until(lambda: len(network.searches) == 2 and not offers._looking)
    assert network.searches[1] == model_key("tiny", "LT"), "the narrowest key"
    assert offers.offers() == [], "the look-up still says the old place"
    network.said[one.peer_id] = (NEW,)
    clock.ms += 2_000
    await ask(offers, one)
    assert len(network.searches) == 2, "and not more often than every five seconds"
    clock.ms += 5_000
    await ask(offers, one)
    await until(lambda: offers.offers())
    assert len(network.searches) == 3
    assert offers.address_of(one.peer_id).addresses[0] == NEW and back == [one.peer_id] * 2


async def test_a_provider_said_to_be_elsewhere_is_asked_at_once_if_it_did_not_answer() -> None:
    one = talking()
    network, clock = Moving(one), Clock()
    offers = OfferBook(network, now_ms=clock)
    await offers.search()
    network.said[one.peer_id] = (NEW,)
    await offers.search()
    assert network.confirmations[one.peer_id] == 1, "it is well: that somebody says so is no reason to ask"
    network.said[one.peer_id] = (OLD,)
    await offers.search()
    network.really[one.peer_id] = NEW
    for _ in range(4):
        await ask(offers, one)
    assert offers.offer_of(one.peer_id) is None
    network.said[one.peer_id] = (NEW,)
    await offers.search()
    assert len(offers.offers()) == 1, "whatever its next turn would have been"


async def test_look_ups_for_the_missing_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    sellers = [talking(f"seller {n}") for n in range(20)]
    for n, one in enumerate(sellers):
        one.offer = one.make_offer(models=(renamed(one, f"m{n}"),))
        one.capacity = capacity(one.offer)
    offers, network, _ = book(*sellers)
    await offers.search()
    network.searches.clear()
    gate = asyncio.Event()
    real = network.find_providers

    async def slow(key: str, **options: Any) -> list[PeerAddress]:
        network.searches.append(key)
        await gate.wait()
        return await real(key, **options)

    monkeypatch.setattr(network, "find_providers", slow)
    network.away.update(one.peer_id for one in sellers)
    for one in sellers:
        await ask(offers, one)
    await asyncio.sleep(0)
    assert len(offers._looking) == offers_module.MAX_LOOKING == len(network.searches)
    gate.set()
    await until(lambda: not offers._looking)


async def test_who_never_answered_is_not_looked_for() -> None:
    one = talking()
    offers, network, _ = book(one)
    network.away.add(one.peer_id)
    await offers.search()
    assert network.searches == ["provider"] and not offers._looking


# -- what is refused ---------------------------------------------------------------------------------------------------


async def test_what_is_refused_is_counted_by_its_reason() -> None:
    one, other, third = seller("one"), seller("other"), seller("third")
    offers, network, _ = book(one, other, third)
    network.raw[one.peer_id] = raw(other.offer)
    network.raw[other.peer_id] = flipped(raw(other.offer))

    async def too_long(peer: PeerAddress, **_: Any) -> bytes:
        if peer.peer_id == third.peer_id:
            raise ProtocolViolation("it announces 2^32 bytes.")
        return await FakeNetwork.fetch_offer(network, peer)

    network.fetch_offer = too_long  # type: ignore[method-assign]
    await offers.search()
    assert offers.refused == {"wrong-key": 1, "bad-signature": 1, "protocol-violation": 1}
    assert offers.n_silent == 3 and offers.offers() == []
    offers.add(raw(one.make_offer(sequence=5)), PeerAddress(one.peer_id, ()))
    offers.add(raw(one.offer), PeerAddress(one.peer_id, ()))
    assert offers.refused["older"] == 1 and offers.offers()[0].message.sequence == 5
