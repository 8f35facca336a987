"""Who is named while a look-up goes on is asked before it is over."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

import pytest

from p2pgrid.client import market as market_module
from p2pgrid.client.early_asks import ASK_ALL_AT, ASKS_AT_A_TIME, EARLY_ASKS, EarlyAsks
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.worker import MainNetwork
from p2pgrid.client.worker_calls import NETWORK_ASKS, Calls, FindProviders, FoundSoFar
from p2pgrid.errors import Unreachable
from p2pgrid.net.lookup_keys import model_key
from p2pgrid.net.own_networks import open_network
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.processes.bus import Bus
from tests.client.seller import FakeNetwork, TestSeller, until
from tests.client.test_offers import Clock, seller
from tests.client.test_purchaser import BODY, CHAT, shop

HERE, ELSEWHERE = "/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/1"


class SlowNetwork(FakeNetwork):
    """A network whose look-ups say what the test has them say, and end when it ends them."""

    def __init__(self, *sellers: TestSeller) -> None:
        super().__init__(*sellers)
        self.on_found: OnFound | None = None
        self.end: asyncio.Future[list[PeerAddress]] = asyncio.get_running_loop().create_future()

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        self.searches.append(key)
        self.on_found = on_found
        return await self.end

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        if HERE not in peer.addresses:
            self.fetches[peer.peer_id] += 1
            raise Unreachable(f"{peer.peer_id} is not at {peer.addresses}.")
        return await super().fetch_offer(peer, timeout_s=timeout_s)

    async def say(self, *peers: PeerAddress) -> None:
        await until(lambda: self.on_found is not None)
        assert self.on_found is not None
        self.on_found(peers)


def at(one: TestSeller, *addresses: str) -> PeerAddress:
    return PeerAddress(one.peer_id, addresses or (HERE,))


async def test_an_offer_is_there_before_the_look_up_is_over() -> None:
    first, second = seller("first"), seller("second")
    network = SlowNetwork(first, second)
    offers = OfferBook(network, now_ms=Clock())
    searching = asyncio.create_task(offers.search())
    await network.say(at(first))
    await until(lambda: offers.offers())
    await network.say(at(second), at(first))
    await until(lambda: len(offers.offers()) == 2)
    assert not searching.done()
    network.end.set_result([at(first), at(second)])
    assert await searching == 2
    assert network.fetches == {first.peer_id: 1, second.peer_id: 1}, "nobody is asked again at the end"


async def test_who_is_named_only_at_the_end_is_asked_then() -> None:
    first, second = seller("first"), seller("second")
    network = SlowNetwork(first, second)
    offers = OfferBook(network, now_ms=Clock())
    searching = asyncio.create_task(offers.search())
    await network.say(at(first))
    network.end.set_result([at(first), at(second)])
    assert await searching == 2 and len(offers.offers()) == 2


async def test_who_was_first_named_at_a_wrong_place_is_asked_again_at_the_right_one() -> None:
    one = seller()
    network = SlowNetwork(one)
    offers = OfferBook(network, now_ms=Clock())
    searching = asyncio.create_task(offers.search())
    await network.say(at(one, ELSEWHERE))
    await until(lambda: network.fetches[one.peer_id] == 1)
    network.end.set_result([at(one)])
    await searching
    assert len(offers.offers()) == 1


async def test_all_networks_that_led_to_somebody_are_known_whoever_was_named_first() -> None:
    one, places = seller(), (HERE,)
    network = SlowNetwork(one)
    offers = OfferBook(network, now_ms=Clock())
    for _ in range(2):  # the second time it is known, and not asked
        searching = asyncio.create_task(offers.search())
        await network.say(PeerAddress(one.peer_id, places, ("demo",)))
        await until(lambda: offers.offers())
        network.end.set_result([PeerAddress(one.peer_id, places, ("demo", "lab"))])
        await searching
        assert offers.address_of(one.peer_id).networks == ("demo", "lab")
        network.end, network.on_found = asyncio.get_running_loop().create_future(), None
    assert network.fetches == {one.peer_id: 1}


async def test_a_place_that_only_the_end_of_a_look_up_named_is_asked_at_by_the_next() -> None:
    """Where it answered by then: it is lost later, and the new place is news still."""
    one = seller()
    network = SlowNetwork(one)
    offers = OfferBook(network, now_ms=Clock())
    searching = asyncio.create_task(offers.search())
    await network.say(at(one))
    await until(lambda: offers.offers())
    network.end.set_result([at(one, HERE, ELSEWHERE)])
    await searching
    assert network.fetches == {one.peer_id: 1}
    offers.note_dead(one.peer_id)
    network.end = asyncio.get_running_loop().create_future()
    network.end.set_result([at(one, HERE, ELSEWHERE)])
    await offers.search()
    assert network.fetches == {one.peer_id: 2}
    assert offers.address_of(one.peer_id).addresses == (HERE, ELSEWHERE)


async def test_what_was_named_counts_also_where_the_look_up_fails() -> None:
    one = seller()
    network = SlowNetwork(one)
    offers = OfferBook(network, now_ms=Clock())
    searching = asyncio.create_task(offers.search())
    await network.say(at(one))
    network.end.set_exception(Unreachable("it did not end in time."))
    (failure,) = await asyncio.gather(searching, return_exceptions=True)
    assert isinstance(failure, Unreachable)
    await until(lambda: offers.offers())


async def test_a_few_are_asked_at_once_and_each_once_the_most_credible_of_the_latest_first() -> None:
    asked: list[str] = []
    tasks: dict[str, asyncio.Future[None]] = {}

    def ask(peer: PeerAddress) -> asyncio.Task[None]:
        asked.append(peer.peer_id)
        tasks[peer.peer_id] = asyncio.get_running_loop().create_future()
        return asyncio.create_task(wait(tasks[peer.peer_id]))

    async def wait(future: asyncio.Future[None]) -> None:
        await future

    early = EarlyAsks(ask)
    invented = [PeerAddress(f"invented {n}", ()) for n in range(100)]
    early.found(invented)
    assert asked == ["invented 0", "invented 1"], "the first who answers does not decide alone"
    early.found([PeerAddress("honest", ()), *invented])
    assert asked[2:] == ["honest", "invented 2"]
    for n in range(3, ASK_ALL_AT):
        early.found(invented)
        assert len(asked) == n * ASKS_AT_A_TIME < EARLY_ASKS
    early.found(invented)
    assert len(asked) == 101, "somebody waits"
    early.found([PeerAddress("late", ()), *invented])
    assert len(asked) == 101
    for n in range(102 - EARLY_ASKS):
        tasks[f"invented {n}"].set_result(None)
    await until(lambda: len(asked) == 102)
    assert asked[-1] == "late"
    early.close()
    tasks["late"].set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    early.found([PeerAddress("too late", ()), *invented])
    assert len(asked) == 102 and max(Counter(asked).values()) == 1
    for future in tasks.values():
        if not future.done():
            future.set_result(None)


async def test_a_request_goes_out_before_the_look_up_for_its_model_is_over() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        network = SlowNetwork(seller)
        book = s.purchaser.book
        book.forget(seller.peer_id)
        book._finder = network
        buying = [asyncio.create_task(s.purchaser.buy(CHAT, BODY, whole=True)) for _ in range(3)]
        await network.say(at(seller))
        for answer in await asyncio.gather(*buying):
            async with answer:
                assert answer.order_number
        assert network.searches == [model_key("tiny")], "one look-up for all who wait"
        assert not network.end.done()
        network.end.set_result([at(seller)])


async def test_nobody_waits_longer_for_a_model_than_the_first_though_the_look_up_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seller, clock = TestSeller(), Clock()
    async with shop(seller) as s:
        network, market = SlowNetwork(seller), s.purchaser.market
        s.purchaser.book._finder = network
        market._now_ms = clock
        monkeypatch.setattr(market_module, "SEARCH_TIMEOUT_S", 0.05)
        assert await market.search_model("unknown", lambda: False)
        clock.ms += 60
        assert not await market.search_model("unknown", lambda: False), "its time is over"
        clock.ms += 10 * market_module.SEARCH_AGAIN_MS
        assert not await market.search_model("unknown", lambda: False), "the look-up still goes on"
        network.end.set_result([])
        await until(lambda: not s.purchaser.book.is_looking_for("unknown"))
        clock.ms += market_module.SEARCH_AGAIN_MS
        assert await market.search_model("unknown", lambda: False)
        assert network.searches == [model_key("unknown")] * 2


async def test_a_gateways_workers_hear_what_was_found_so_far() -> None:
    one, other = PeerAddress("12D3KooWone", (HERE,), ("open",)), PeerAddress("12D3KooWother", (ELSEWHERE,))
    left, right = socket.socketpair()
    main, worker = await Bus.over(left, "worker"), await Bus.over(right, "main process")
    heard: list[list[PeerAddress]] = []

    async def perform(ask: FindProviders) -> list[PeerAddress]:
        if ask.look_up:
            main.send(FoundSoFar(ask.look_up, (one,)))
            await until(lambda: heard)
            main.send(FoundSoFar(ask.look_up + 1, (other,)))
        return [one, other]

    Calls(main, NETWORK_ASKS, perform)
    network = MainNetwork(Calls(worker, FindProviders, perform), open_network("test", ()), worker)
    main.start()
    worker.start()
    assert await network.find_providers("provider", on_found=lambda peers: heard.append(list(peers))) == [one, other]
    assert heard == [[one]]
    assert await network.find_providers("provider") == [one, other]
    for bus in (main, worker):
        bus.close()
