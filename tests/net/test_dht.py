"""The DHT on real hosts: one process, eight servers, loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pgrid.net.dht import Dht
from p2pgrid.net.doors import KAD_ALLOWANCE
from p2pgrid.net.host import open_host
from p2pgrid.net.kad_query import Contact, KadQuery, contact_of, node_of
from p2pgrid.net.lookup_keys import record_key
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.swarm import GridSwarm
from p2pgrid.proto.kademlia.places import Node as KadNode
from p2pgrid.proto.keys import SecretKey
from tests.net.trio_hosts import LOOPBACK, contact, new_key, run_trio, until

KEY = record_key("test", "model/x")
KAD = "/p2pgrid/test/kad/1.0.0"


@dataclass
class Node:
    host: BasicHost
    dht: Dht

    @property
    def peer_id(self) -> str:
        return str(self.host.get_id())

    def table(self) -> set[str]:
        return {str(ID(node.peer)) for node in self.dht.member.table}


@asynccontextmanager
async def node(
    seeds: list[Node],
    *,
    serve: bool = True,
    network: str = "test",
    ask_timeout_s: float = 6.0,
    key: SecretKey | None = None,
) -> AsyncIterator[Node]:
    """A host in the DHT, joined through `seeds`."""
    async with open_host(key or new_key(), [LOOPBACK] if serve else []) as host, trio.open_nursery() as nursery:
        dht = Dht(host, network, serve=serve, ask_timeout_s=ask_timeout_s)
        nursery.start_soon(dht.run)
        await dht.join([contact(seed.host) for seed in seeds])
        yield Node(host, dht)
        nursery.cancel_scope.cancel()


def node_of_contact(contact: Contact) -> KadNode:
    return node_of(contact.peer_id.to_bytes(), [address.to_bytes() for address in contact.addresses])


async def found(by: Node, key: bytes = KEY) -> set[str]:
    return {peer.peer_id for peer in await by.dht.find_providers(key, 50, 10)}


def test_a_network_of_eight() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(node([]))
            servers = [first, *[await stack.enter_async_context(node([first])) for _ in range(7)]]
            everybody = {server.peer_id for server in servers}
            await until(lambda: all(s.table() == everybody - {s.peer_id} for s in servers), "all know one another")

            providers = servers[3:6]
            for provider in providers:
                assert await provider.dht.announce(KEY) == 7

            async with node([first], serve=False) as client:
                assert await found(client) == {p.peer_id for p in providers}, "a cold client finds all"
                for peer in await client.dht.find_providers(KEY, 50, 10):
                    assert peer.addresses[0].endswith(f"/p2p/{peer.peer_id}")
                assert await found(client, record_key("test", "model/other")) == set()
                assert len(await client.dht.find_providers(KEY, 2, 10)) == 2

                # A ninth appears at once, also to one who has looked before; a client can provide too.
                async with node([first], serve=False) as ninth:
                    assert await ninth.dht.announce(KEY) == 8
                    # It listens nowhere, so there is nothing to dial and it is left out.
                    assert await found(client) == {p.peer_id for p in providers}
                async with node([first]) as ninth:
                    assert await ninth.dht.announce(KEY) == 8
                    assert await found(client) == {p.peer_id for p in [*providers, ninth]}
                assert all(client.peer_id not in server.table() for server in servers), "no client in a table"

    run_trio(main, 60)


def test_a_dead_server_is_passed_over_and_forgotten() -> None:
    async def main() -> None:
        async with node([]) as first, node([first]) as provider, AsyncExitStack() as stack:
            dead = await stack.enter_async_context(node([first]))
            await until(lambda: dead.peer_id in first.table(), "the server is known")
            assert await provider.dht.announce(KEY) >= 1
            await stack.aclose()
            async with node([first], serve=False) as client:
                assert await found(client) == {provider.peer_id}
                assert dead.peer_id not in client.table()

    run_trio(main)


def test_two_networks_do_not_mix() -> None:
    """Not even where one is introduced to the other's peer."""

    async def main() -> None:
        async with node([], network="test") as one, node([one], network="other") as stranger:
            assert stranger.table() == set()
            assert await stranger.dht.announce(KEY) == 0
            await until(lambda: one.host.get_network().get_connections(), "they are connected")
            assert one.table() == set()
            async with node([one], serve=False) as client:
                assert await found(client) == set()

    run_trio(main)


def test_a_restarted_server_is_known_by_its_new_address() -> None:
    async def main() -> None:
        key = new_key()
        async with node([]) as first:
            for _ in range(2):
                async with open_host(key, [LOOPBACK]) as host, trio.open_nursery() as nursery:
                    dht = Dht(host, "test", serve=True)
                    nursery.start_soon(dht.run)
                    await dht.join([contact(first.host)])

                    def known(host: BasicHost = host) -> bool:
                        node = first.dht.member.table.get(node_of(host.get_id().to_bytes(), ()))
                        return node is not None and contact_of(node) == contact(host)

                    with trio.move_on_after(2):
                        while not known():
                            await first.dht.refresh()
                    assert known()
                    nursery.cancel_scope.cancel()
                await until(lambda: not first.host.get_network().get_connections(), "the first run is gone")

    run_trio(main)


def test_values_are_not_stored() -> None:
    async def main() -> None:
        async with node([]) as server, node([server], serve=False) as peer:
            message = Message()
            message.type = Message.MessageType.PUT_VALUE
            message.key = message.record.key = b"/free/storage"
            message.record.value = b"x" * 1000
            stream = await peer.host.new_stream(server.host.get_id(), [KAD])
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
            with pytest.raises(StreamError):
                await stream.read(1)
            message.type = Message.MessageType.GET_VALUE
            assert server.dht.server.answer(message.SerializeToString(), b"peer", "127.0.0.1") is None

    run_trio(main)


def test_a_peer_cannot_provide_for_another() -> None:
    async def main() -> None:
        async with node([]) as server, node([server]) as victim, node([server], serve=False) as peer:
            message = Message()
            message.type = Message.MessageType.ADD_PROVIDER
            message.key = KEY
            record = message.providerPeers.add()
            record.id = victim.host.get_id().to_bytes()
            record.addrs.append(Multiaddr("/ip4/192.0.2.1/tcp/1").to_bytes())
            stream = await peer.host.new_stream(server.host.get_id(), [KAD])
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
            await read_varint_prefixed_bytes_limited(stream, 4096)  # the library echoes what it understood
            assert len(server.dht.member.records) == 0

    run_trio(main)


def test_idle_streams_do_not_block_the_dht() -> None:
    async def main() -> None:
        async with node([]) as server, node([server], serve=False) as idler:
            server.dht.server.idle_timeout_s = 1.0
            seats = server.host.doors.seats[KAD]
            await until(lambda: not seats.taken, "the streams of joining have ended")
            idle = [
                await idler.host.new_stream(server.host.get_id(), [KAD]) for _ in range(KAD_ALLOWANCE.per_peer or 0)
            ]
            with pytest.raises((StreamError, StreamFailure)):
                one_more = await idler.host.new_stream(server.host.get_id(), [KAD])
                await one_more.read(1)
            async with node([server], serve=False) as honest:
                assert server.peer_id in honest.table(), "others are served meanwhile"
            for stream in idle:
                with pytest.raises(StreamError):
                    await stream.read(1)

    run_trio(main)


def test_oversized_and_malformed_requests_end_their_stream() -> None:
    async def main() -> None:
        async with node([]) as server, node([server], serve=False) as peer:
            for payload in [encode_varint_prefixed(bytes(20_000)), b"\xff" * 11, encode_varint_prefixed(b"\xff" * 50)]:
                stream = await peer.host.new_stream(server.host.get_id(), [KAD])
                await stream.write(payload)
                with pytest.raises(StreamError):
                    await stream.read(1)
            assert await peer.dht.join([contact(server.host)]) == 1

    run_trio(main)


def test_a_server_that_lies_or_hangs_does_no_harm() -> None:
    async def main() -> None:
        def liar(reply: bytes) -> Any:
            async def handle(stream: Any) -> None:
                await read_varint_prefixed_bytes_limited(stream, 65536)
                await stream.write(reply)
                await trio.sleep_forever()

            return handle

        flood = Message()
        flood.type = Message.MessageType.GET_PROVIDERS
        for n in range(2000):
            fake = flood.providerPeers.add()
            fake.id = bytes.fromhex("002408011220") + n.to_bytes(32)
            fake.addrs.extend([Multiaddr(f"/ip4/192.0.2.1/tcp/{port}").to_bytes() for port in range(1, 4)])
        replies = [
            b"",
            b"\xff\xff\xff\x7f",
            encode_varint_prefixed(b"\xff" * 100),
            encode_varint_prefixed(flood.SerializeToString()),
        ]
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(node([]))
            provider = await stack.enter_async_context(node([first]))
            await provider.dht.announce(KEY)
            client = await stack.enter_async_context(node([first], serve=False, ask_timeout_s=1.0))
            liars = []
            for reply in replies:
                host = await stack.enter_async_context(open_host(new_key(), [LOOPBACK]))
                host.set_stream_handler(KAD, liar(reply))
                liars.append(node_of_contact(contact(host)))
            client.dht.member.seeds = tuple(liars)
            peers = await client.dht.find_providers(KEY, 50, 10)
            assert peers[0].peer_id == provider.peer_id, "who signed for itself comes before hearsay"
            assert len(peers) <= 50

    run_trio(main)


def test_a_lookup_ends_in_time_with_what_was_found() -> None:
    async def main() -> None:
        async with node([]) as first, node([first]) as provider, node([first], serve=False) as client:
            await provider.dht.announce(KEY)

            async def hangs(stream: Any) -> None:
                await trio.sleep_forever()

            async with open_host(new_key(), [LOOPBACK]) as host:
                host.set_stream_handler(KAD, hangs)
                client.dht.member.seeds = (node_of_contact(contact(host)),)
                with trio.fail_after(7):
                    peers = await client.dht.find_providers(KEY, 50, 1.0)
                assert [peer.peer_id for peer in peers] == [provider.peer_id]

    run_trio(main)


def test_providers_are_handed_on_while_a_lookup_goes_on() -> None:
    async def main() -> None:
        async with node([]) as first, node([first]) as provider, node([first], serve=False) as client:
            await provider.dht.announce(KEY)
            is_heard = trio.Event()
            heard: list[list[str]] = []

            def on_found(peers: Sequence[PeerAddress]) -> None:
                heard.append([peer.peer_id for peer in peers])
                is_heard.set()

            reply = Message()
            reply.type = Message.MessageType.GET_PROVIDERS
            late = reply.providerPeers.add()
            late.id = ID.from_base58(new_key().public_key.peer_id).to_bytes()
            late.addrs.append(Multiaddr("/ip4/192.0.2.1/tcp/1").to_bytes())

            async def answers_late(stream: Any) -> None:
                await read_varint_prefixed_bytes_limited(stream, 65536)
                await is_heard.wait()
                await stream.write(encode_varint_prefixed(reply.SerializeToString()))

            async with open_host(new_key(), [LOOPBACK]) as host:
                host.set_stream_handler(KAD, answers_late)
                client.dht.member.seeds = (node_of_contact(contact(host)),)
                peers = await client.dht.find_providers(KEY, 50, 20.0, on_found)
            assert heard[0] == [provider.peer_id]
            assert [peer.peer_id for peer in peers] == [provider.peer_id, str(ID(late.id))], "it was not over by then"

    run_trio(main)


def test_many_keys_reach_a_server_that_counts() -> None:
    """libp2p's own limit, ten in ten seconds, drops the eleventh without a word."""

    async def main() -> None:
        async with node([]) as server, node([server]) as provider, node([server], serve=False) as client:
            keys = [record_key("test", f"model/{n}") for n in range(15)]
            for key in keys:
                assert await provider.dht.announce(key) == 1
            for key in keys:
                assert await found(client, key) == {provider.peer_id}

    run_trio(main)


def test_own_records_can_be_withdrawn() -> None:
    async def main() -> None:
        async with node([]) as server, node([server], serve=False) as client:
            await server.dht.announce(KEY)
            assert await found(client) == {server.peer_id}
            server.dht.forget_own_records()
            assert await found(client) == set()

    run_trio(main)


def test_a_query_to_a_client_fails_at_once() -> None:
    async def main() -> None:
        async with node([]) as server, node([server], serve=False) as client:
            query = KadQuery(server.host, KAD)
            with pytest.raises(Exception, match="failed to open a stream"), trio.fail_after(8):
                await query.find_node(Contact(client.host.get_id(), ()), KEY)
            assert isinstance(server.host.get_network(), GridSwarm)

    run_trio(main)


def test_who_learns_that_nobody_reaches_it_is_a_client_until_somebody_does() -> None:
    async def main() -> None:
        async with node([]) as first, node([first]) as hidden:
            await until(lambda: first.table() == {hidden.peer_id}, "it is a server")
            hidden.dht.decide(False)
            hidden.dht.decide(False)
            while first.table():
                await first.dht.refresh()
                for known in first.dht.servers():
                    assert not await first.dht.is_server(known)
                    first.dht.member.table.failed(node_of_contact(known))
            assert await hidden.dht.announce(KEY) == 1, "it announces itself as any client does"
            hidden.dht.decide(None)
            await until(lambda: first.table() == {hidden.peer_id}, "it is a server again")

    run_trio(main)


def test_two_halves_that_know_nothing_of_one_another_find_together_through_a_bootstrap_peer() -> None:
    """More servers in each than a look-up begins with: no look-up asks a bootstrap peer any more."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            seed, other_seed = [await stack.enter_async_context(node([])) for _ in range(2)]
            half = [await stack.enter_async_context(node([seed])) for _ in range(3)]
            other_half = [await stack.enter_async_context(node([other_seed])) for _ in range(3)]
            await other_half[0].dht.announce(KEY)
            assert await found(half[0]) == set()
            everybody = {one.peer_id for one in (seed, other_seed, *half, *other_half)}
            # They are one network: now the cut is mended, and a peer of one half asks whom it has always begun with.
            await other_seed.dht.join([contact(seed.host)])
            await until(lambda: seed.peer_id in other_seed.table() and other_seed.peer_id in seed.table(), "mended")
            for one in (*half, *other_half):
                await one.dht.ask_seeds()
            await until(lambda: all(one.table() == everybody - {one.peer_id} for one in (*half, *other_half)), "met")
            assert await found(half[0]) == {other_half[0].peer_id}

    run_trio(main, 60)
