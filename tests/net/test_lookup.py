from __future__ import annotations

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from trio.testing import MockClock

from p2pgrid.net.kad_query import Answer, Contact, ProviderClaim
from p2pgrid.net.kad_server import ADD_PROVIDER_WINDOW_S
from p2pgrid.net.lookup import Pace, Route, Sightings
from p2pgrid.net.lookup_keys import record_key

KEY = record_key("test", "model/x")


def _contacts(count: int) -> list[Contact]:
    address = (Multiaddr("/ip4/192.0.2.1/tcp/1"),)
    return [Contact(ID(bytes.fromhex("002408011220") + n.to_bytes(32)), address) for n in range(count)]


def test_a_route_asks_each_peer_once_and_ends() -> None:
    own, *others = _contacts(200)
    route = Route(KEY, own.peer_id, others[:3])
    asked: list[ID] = []
    while (server := route.next()) is not None:
        asked.append(server.peer_id)
        closer = (own, *others)
        route.heard(server, None if len(asked) % 3 == 0 else Answer(server, closer, ()))
    assert len(asked) == len(set(asked))
    assert own.peer_id not in asked
    assert len(asked) <= 80
    assert len(route.answered()) == 20


def test_sightings_are_ranked_and_deduplicated() -> None:
    one, two, three, own = _contacts(4)
    sightings = Sightings(str(own.peer_id))
    for _ in range(3):
        sightings.add([ProviderClaim(one, None), ProviderClaim(one, None), ProviderClaim(own, None)])
    sightings.add([ProviderClaim(two, None)])
    newer = (Multiaddr("/ip4/192.0.2.9/tcp/9"),)
    sightings.add([ProviderClaim(Contact(three.peer_id, newer), 7)])
    sightings.add([ProviderClaim(three, 5)])
    ranked = sightings.ranked()
    assert [peer.peer_id for peer in ranked] == [str(c.peer_id) for c in (three, one, two)]
    assert ranked[0].addresses == (f"/ip4/192.0.2.9/tcp/9/p2p/{three.peer_id}",)


def test_announcements_are_paced() -> None:
    async def main() -> None:
        pace = Pace(per_window=5)
        for n in range(12):
            await pace.wait_for("server")
            assert trio.current_time() == pytest.approx(start + ADD_PROVIDER_WINDOW_S * (n // 5))
        await pace.wait_for("another server")
        assert trio.current_time() == pytest.approx(start + 2 * ADD_PROVIDER_WINDOW_S)

    clock = MockClock(autojump_threshold=0)
    start = clock.current_time()
    trio.run(main, clock=clock)
