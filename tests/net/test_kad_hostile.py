"""Real servers of the DHT that lie, and real announcements that do: no crash, and honest providers are found."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pgrid.net.dht import Dht
from p2pgrid.net.host import open_host
from p2pgrid.net.kad_query import own_record
from p2pgrid.proto.kademlia.places import place_of
from tests.net.test_dht import KAD, KEY, Node, found, node
from tests.net.trio_hosts import LOOPBACK, contact, new_key, run_trio

LOOPBACK_IP = "127.0.0.1"
Lie = Callable[[BasicHost, Any], bytes | None]
"""What a server answers to a request, framed; None for nothing at all."""


def framed(raw: bytes) -> bytes:
    whole: bytes = encode_varint_prefixed(raw)
    return whole


def message(request: Any, *, closer: Sequence[Any] = (), providers: Sequence[Any] = ()) -> bytes:
    answer = Message(type=request.type, key=request.key)
    for peers, named in ((answer.closerPeers, closer), (answer.providerPeers, providers)):
        for peer, address, record in named:
            one = peers.add(id=peer, signedRecord=record)
            one.addrs.append(Multiaddr(address).to_bytes())
    return framed(answer.SerializeToString())


def nobody(number: int, near: bytes = b"") -> bytes:
    """A peer id that belongs to nobody; with `near`, the closest to that key of a few hundred."""
    rng = random.Random(number)
    ids = [bytes.fromhex("002408011220") + rng.randbytes(32) for _ in range(300 if near else 1)]
    return min(ids, key=lambda one: place_of(one) ^ place_of(near))


def rubbish(host: BasicHost, request: Any) -> bytes:
    return framed(b"\xff" * 200)


def endless(host: BasicHost, request: Any) -> bytes:
    return b"\xff\xff\xff\xff\x7f" + bytes(100_000)


def silence(host: BasicHost, request: Any) -> None:
    return None


def a_thousand_peers(host: BasicHost, request: Any) -> bytes:
    named = [(nobody(n), f"/ip4/127.0.0.1/tcp/{1 + n}", b"") for n in range(1000)]
    return message(request, closer=named, providers=named)


def sybils(host: BasicHost, request: Any) -> bytes:
    """Twenty who sit beside the key, and are nowhere."""
    named = [(nobody(n, request.key), f"/ip4/127.0.0.1/tcp/{1 + n}", b"") for n in range(20)]
    return message(request, closer=named, providers=named)


def another_type(host: BasicHost, request: Any) -> bytes:
    return framed(Message(type=Message.MessageType.PUT_VALUE, key=request.key).SerializeToString())


def addresses_of_others(host: BasicHost, request: Any) -> bytes:
    wrong = [b"", b"\x04", b"\xff" * 100, Multiaddr("/ip4/0.0.0.0/tcp/1").to_bytes(), Multiaddr("/unix/a").to_bytes()]
    answer = Message(type=request.type, key=request.key)
    for peers in (answer.closerPeers, answer.providerPeers):
        for number in range(20):
            peers.add(id=nobody(number), addrs=wrong)
        peers.add(id=b"", addrs=wrong)
        peers.add(id=b"\x12\x20" + bytes(32), addrs=[contact(host).addresses[0].to_bytes()])
    return framed(answer.SerializeToString())


@asynccontextmanager
async def liar(lie: Lie) -> AsyncIterator[BasicHost]:
    async def handle(stream: Any) -> None:
        request = Message()
        request.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 65_536))
        said = lie(host, request)
        if said is None:
            await trio.sleep_forever()
        await stream.write(said)
        await stream.close()

    async with open_host(new_key(), [LOOPBACK]) as host:
        host.set_stream_handler(KAD, handle)
        yield host


async def honest_network(stack: AsyncExitStack, servers: int = 5) -> list[Node]:
    first = await stack.enter_async_context(node([]))
    return [first, *[await stack.enter_async_context(node([first])) for _ in range(servers - 1)]]


@pytest.mark.parametrize(
    "lie", [rubbish, endless, silence, a_thousand_peers, sybils, another_type, addresses_of_others]
)
def test_whatever_some_servers_answer_honest_providers_are_found(lie: Lie) -> None:
    """Two of seven servers lie, the client begins with them, and one of them sits at the key."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            honest = await honest_network(stack)
            liars = [await stack.enter_async_context(liar(lie)) for _ in range(2)]
            for each in honest:
                await each.dht.join([contact(one) for one in liars] + [contact(honest[0].host)])
            for provider in honest[1:3]:
                assert await provider.dht.announce(KEY) >= 2
            client = await stack.enter_async_context(node([], serve=False, ask_timeout_s=2.0))
            await client.dht.join([*(contact(one) for one in liars), contact(honest[0].host)])
            began = trio.current_time()
            assert {one.peer_id for one in honest[1:3]} <= await found(client)
            assert trio.current_time() - began < 5
            assert len(await client.dht.find_providers(KEY, 50, 10)) <= 50
            assert client.dht.size <= 7, "nobody who did not answer is in the table"

    run_trio(main, 60)


async def claims_of(server: Node, key: bytes = KEY) -> dict[str, list[str]]:
    """What a server tells of the providers of a key."""
    request = Message(type=Message.MessageType.GET_PROVIDERS, key=key).SerializeToString()
    answer = Message()
    answer.ParseFromString(server.dht.server.answer(request, b"somebody", LOOPBACK_IP) or b"")
    return {str(ID(one.id)): [str(Multiaddr(raw)) for raw in one.addrs] for one in answer.providerPeers}


def announcement(peer: bytes, addresses: Sequence[str], record: bytes = b"", key: bytes = KEY) -> bytes:
    request = Message(type=Message.MessageType.ADD_PROVIDER, key=key)
    request.providerPeers.add(id=peer, addrs=[Multiaddr(one).to_bytes() for one in addresses], signedRecord=record)
    return bytes(request.SerializeToString())


def test_the_signature_of_another_and_a_record_signed_for_another_are_no_signatures() -> None:
    """Told on, the addresses are hearsay at most: whoever signed for itself comes before."""

    async def main() -> None:
        async with node([]) as server, node([server]) as provider, node([server], serve=False) as client:
            await provider.dht.announce(KEY)
            async with open_host(new_key(), [LOOPBACK]) as attacker, open_host(new_key(), [LOOPBACK]) as other:
                peer = attacker.get_id().to_bytes()
                for record in (own_record(other), own_record(provider.host), b"\x0a\x01rubbish", b"x" * 10_000):
                    said = announcement(peer, ["/ip4/127.0.0.1/tcp/9"], record)
                    assert server.dht.server.answer(said, peer, LOOPBACK_IP) is not None
                    [kept] = [
                        one
                        for one in server.dht.member.records.of(KEY, trio.current_time(), random.random)
                        if one.peer == peer
                    ]
                    assert kept.signed == b""
                peers = await client.dht.find_providers(KEY, 50, 10)
                assert [one.peer_id for one in peers] == [provider.peer_id, str(attacker.get_id())]

    run_trio(main)


def test_a_replayed_record_moves_nobody() -> None:
    """Yesterday's record of a provider is signed all right; today's has a higher number."""

    async def main() -> None:
        key = new_key()
        async with open_host(key, [LOOPBACK]) as before:
            old = own_record(before)
            gone = str(before.get_transport_addrs()[0])
        await trio.sleep(0.01)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(node([]))
            provider = await stack.enter_async_context(node([first], key=key))
            await provider.dht.announce(KEY)
            peer = provider.host.get_id().to_bytes()

            def replay(_: BasicHost, request: Any) -> bytes:
                return message(request, providers=[(peer, gone, old)])

            liars = [await stack.enter_async_context(liar(replay)) for _ in range(3)]
            client = await stack.enter_async_context(node([], serve=False))
            await client.dht.join([*(contact(one) for one in liars), contact(first.host)])
            [one] = await client.dht.find_providers(KEY, 50, 10)
            assert one.peer_id == provider.peer_id
            assert one.addresses[0].startswith(str(provider.host.get_transport_addrs()[0]))

    run_trio(main)


def test_nobody_announces_somebody_elses_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Met over the internet, a peer is believed the address that it comes from; others are dialled, and not told."""
    dialled: list[str] = []

    async def nobody_is_there(_: Dht, peer: bytes, address: bytes) -> bool:
        dialled.append(str(Multiaddr(address)))
        return False

    monkeypatch.setattr(Dht, "_is_at", nobody_is_there)

    async def main() -> None:
        async with node([]) as server:
            await trio.testing.wait_all_tasks_blocked()  # its server has begun
            peer, victim = nobody(1), "/ip4/9.9.9.9/tcp/443"
            private, named = ["/ip4/127.0.0.1/tcp/22", "/ip4/192.168.1.1/tcp/80"], "/dns4/bank.example/tcp/443"
            for addresses, tried in (([victim], [victim]), (private, [victim]), ([named], [victim, named])):
                server.dht.server.answer(announcement(peer, addresses), peer, "8.8.8.8")
                await trio.testing.wait_all_tasks_blocked()
                assert dialled == tried, "what may be the peer's is dialled, once"
                assert await claims_of(server) == {}
            mine = "/ip4/8.8.8.8/tcp/4001"
            server.dht.server.answer(announcement(peer, [victim, mine]), peer, "8.8.8.8")
            assert await claims_of(server) == {str(ID(peer)): [mine]}
            for number in range(10, 20):
                server.dht.server.answer(announcement(nobody(number), [victim]), nobody(number), "8.8.8.8")
            await trio.testing.wait_all_tasks_blocked()
            assert dialled == [victim, named], "for many claimants a victim is dialled no more often"

    run_trio(main)


def test_a_flood_of_sybils_near_a_key_hides_no_provider() -> None:
    """A thousand keys announce themselves from one network; the record of a provider elsewhere is told all the same."""

    async def main() -> None:
        async with node([]) as server:
            for number in range(1000):
                peer = nobody(number)
                server.dht.server.answer(announcement(peer, ["/ip4/9.9.9.9/tcp/1"]), peer, "9.9.9.9")
            honest = nobody(5000)
            server.dht.server.answer(announcement(honest, ["/ip4/8.8.8.8/tcp/1"]), honest, "8.8.8.8")
            for _ in range(20):
                assert str(ID(honest)) in await claims_of(server)

    run_trio(main)
