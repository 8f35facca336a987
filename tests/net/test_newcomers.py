"""Who begins to serve the DHT, or ceases to, is found out over the connections that there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.identity.identify_push.identify_push import push_identify_to_peer
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport

from p2pgrid.net.dht import Dht
from p2pgrid.net.newcomers import CHANGES_BURST, Newcomers, tell_changed
from tests.net.test_dht import KAD, Node, node, node_of_contact
from tests.net.trio_hosts import connect, contact, dialling_host, echo, listening_host, new_key, run_trio, until


def told_of(one: Node) -> set[str]:
    """Whom it names to others."""
    return {str(ID(server.peer)) for server in one.dht.member.table.closest(0)}


def connection(a: Node, b: Node) -> Any:
    [found] = a.host.get_network().get_connections(b.host.get_id())
    return found


def test_who_serves_no_more_or_again_is_found_out_over_the_connection_that_there_is() -> None:
    async def main() -> None:
        async with node([]) as first, node([first]) as changing:
            await until(lambda: told_of(first) == {changing.peer_id}, "it is a server")
            before = connection(first, changing)
            for _ in range(CHANGES_BURST // 2):
                changing.dht.decide(False)
                await until(lambda: not told_of(first), "it is one no more")
                changing.dht.decide(None)
                await until(lambda: told_of(first) == {changing.peer_id}, "it is one again")
            assert connection(first, changing) is before

    run_trio(main)


def test_neighbours_that_it_lost_meet_it_again_when_it_serves() -> None:
    async def main() -> None:
        async with node([]) as first, node([first]) as other, node([first]) as changing:
            await until(lambda: changing.peer_id in other.table() and len(first.table()) == 2, "all know one another")
            changing.dht.decide(False)
            await until(lambda: {*told_of(first), *told_of(other)} == {first.peer_id, other.peer_id}, "it is hidden")
            for one, another in ((other, changing), (changing, other)):
                lost = node_of_contact(contact(another.host))
                while another.peer_id in one.table():
                    one.dht.member.table.failed(lost)
            await connection(changing, other).close()
            await until(lambda: not other.host.get_network().is_connected(changing.host.get_id()), "they have parted")
            changing.dht.decide(True)
            await until(lambda: changing.peer_id in told_of(other), "it looked around")

    run_trio(main)


@asynccontextmanager
async def stock_server() -> AsyncIterator[Any]:
    """A server of the DHT on py-libp2p's own host, that answers no question."""
    keys = create_new_key_pair()
    noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    host = new_host(key_pair=keys, sec_opt={NOISE_ID: noise})

    async def hang_up(stream: Any) -> None:
        await stream.reset()

    host.set_stream_handler(KAD, hang_up)
    async with host.run(listen_addrs=[]):
        yield host


def protocols(of: Any, at: Any) -> list[str]:
    """What one host knows of another's."""
    try:
        return list(at.get_peerstore().get_protocols(of.get_id()))
    except PeerStoreError:
        return []


def test_servers_of_other_implementations_are_told_in_identify_s_own_words() -> None:
    async def main() -> None:
        async with node([]) as changing, stock_server() as stock:
            await stock.connect(PeerInfo(changing.host.get_id(), list(changing.host.get_transport_addrs())))
            await until(lambda: KAD in protocols(changing.host, stock), "it is a server")
            await until(lambda: KAD in protocols(stock, changing.host), "and so is the other")
            changing.dht.decide(False)
            await until(lambda: KAD not in protocols(changing.host, stock), "it is one no more")
            changing.dht.decide(None)
            await until(lambda: KAD in protocols(changing.host, stock), "it is one again")

    run_trio(main)


@pytest.mark.parametrize("is_closed", [False, True])
def test_in_a_closed_network_nobody_is_told_but_who_has_answered(is_closed: bool) -> None:
    async def main() -> None:
        async def anybody(_: ID) -> bool:
            return True

        async with listening_host() as host, stock_server() as stock, listening_host() as client:
            dht = Dht(host, "test", serve=True, is_one_of_us=anybody if is_closed else None)
            await connect(client, host)
            await stock.connect(PeerInfo(host.get_id(), list(host.get_transport_addrs())))
            await until(lambda: KAD in protocols(stock, host) and protocols(client, host), "all are identified")
            assert dht._connected_servers() == (set() if is_closed else {stock.get_id()})
            async with node([]) as server:
                await connect(host, server.host)
                assert await dht.is_server(contact(server.host))
                assert server.host.get_id() in dht._connected_servers()
            await until(lambda: not host.get_network().is_connected(server.host.get_id()), "it has left")
            assert server.host.get_id() not in dht._connected_servers()

    run_trio(main)


def test_a_peer_that_says_so_without_end_is_asked_a_few_times() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer, dialling_host() as other:
            asked: list[ID] = []

            async def ask(peer_id: ID) -> None:
                asked.append(peer_id)

            async def nobody(_: ID) -> None: ...

            async with trio.open_nursery() as nursery:
                Newcomers(host, nursery, on_new=nobody, on_changed=ask)
                await connect(peer, host)
                await connect(other, host)
                for _ in range(CHANGES_BURST + 5):
                    assert await push_identify_to_peer(peer, host.get_id(), None, trio.CapacityLimiter(1))
                stream = await other.new_stream(host.get_id(), [IDENTIFY_PUSH])
                await stream.write(b"\x05nonsense")
                await stream.close()
                await until(lambda: other.get_id() in asked, "it may have said that it is something else")
                await echo(peer, host)
            assert asked.count(peer.get_id()) == CHANGES_BURST

    run_trio(main)


def test_who_does_not_take_it_holds_up_nobody() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as deaf, dialling_host() as silent, node([]) as server:
            deaf.remove_stream_handler(IDENTIFY_PUSH)

            async def hangs(stream: Any) -> None:
                await trio.sleep_forever()

            silent.set_stream_handler(IDENTIFY_PUSH, hangs)
            for one in (deaf, silent, server.host):
                await connect(one, host)
            heard: list[ID] = []
            server.host.on_pushed.append(heard.append)
            with trio.fail_after(5):
                await tell_changed(host, [one.get_id() for one in (deaf, silent, server.host)])
            await until(lambda: heard == [host.get_id()], "who takes it has it")
            gone = ID.from_base58(new_key().public_key.peer_id)
            with trio.fail_after(5):
                await tell_changed(host, [gone])

    run_trio(main)
