"""Hosts in closed networks on loopback, and outsiders that know everything but what closes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from p2pgrid.net.host import negotiate_on, open_host, open_stream
from p2pgrid.net.member_books import ListBook, MemberBook, SecretBook
from p2pgrid.net.members.gate import Gate
from p2pgrid.net.own_networks import OwnNetwork, OwnNetworks
from p2pgrid.proto.closed_network import listed_network, secret_network
from p2pgrid.proto.keys import SecretKey
from tests.net.trio_hosts import ECHO, LOOPBACK, connect, contact, new_key

SECRET = b"s" * 32
OTHER_SECRET = b"o" * 32


@dataclass
class Member:
    """A host, its gate, and its networks."""

    host: BasicHost
    gate: Gate
    own: OwnNetworks

    @property
    def peer_id(self) -> str:
        return str(self.host.get_id())

    def sees(self, other: BasicHost) -> frozenset[str]:
        """In which networks the other has shown itself a member, on any connection."""
        connections = self.host.get_network().get_connections(other.get_id())
        return frozenset().union(*(self.gate.member_of(one.muxed_conn) for one in connections))


def secret_book(name: str = "lab", secret: bytes = SECRET) -> SecretBook:
    return SecretBook(secret_network(name, secret))


def list_book(*keys: SecretKey) -> ListBook:
    return ListBook(listed_network("lab"), tuple(key.public_key.peer_id for key in keys))


def networks(*books: MemberBook | str, sells: Callable[[str], bool] = lambda _: True) -> OwnNetworks:
    """Those that the books close, and open ones by their names."""
    names = [(book, book if isinstance(book, str) else book.network.name) for book in books]
    return OwnNetworks(
        [OwnNetwork(name, (), book if isinstance(book, MemberBook) else None, sells(name)) for book, name in names]
    )


@asynccontextmanager
async def member(*books: MemberBook | str, key: SecretKey | None = None, listens: bool = True) -> AsyncIterator[Member]:
    """A host that echoes to whom its gate lets in; by default in the network `lab` of those who hold `SECRET`."""
    own, key = networks(*(books or (secret_book(),))), key or new_key()
    gate = Gate(own, key.public_key)
    async with open_host(key, [LOOPBACK] if listens else [], gate=gate) as host, trio.open_nursery() as nursery:
        host.set_stream_handler(ECHO, echo_back)
        nursery.start_soon(gate.run, host)
        yield Member(host, gate, own)
        nursery.cancel_scope.cancel()


async def echo_back(stream: Any) -> None:
    while data := await stream.read(65536):
        await stream.write(data)


async def talk(a: BasicHost, b: BasicHost, protocol: str = ECHO) -> bytes:
    """Use a protocol as p2pgrid does; what comes back. Raises Refused, StreamFailure."""
    stream = await open_stream(a, b.get_id(), contact(b).addresses, protocol)
    await stream.write(b"hello")
    data: bytes = await stream.read(5)
    await stream.reset()
    return data


async def force(a: BasicHost, b: BasicHost, protocol: str = ECHO, said: bytes = b"hello") -> bytes:
    """Use a protocol as somebody does who does not care for gates. Raises StreamFailure."""
    stream = await negotiate_on(a, await connect(a, b), protocol)
    await stream.write(said)
    data: bytes = await stream.read(len(said))
    await stream.reset()
    return data


async def listed(a: BasicHost, b: BasicHost) -> set[str]:
    """What `b` says of its protocols when it is asked with multistream's `ls`."""
    connection = await connect(a, b)
    stream = await connection.new_stream()
    communicator = MultiselectCommunicator(stream)
    await communicator.write("/multistream/1.0.0")
    assert await communicator.read() == "/multistream/1.0.0"
    await communicator.write("ls")
    answer = await communicator.read()
    await stream.reset()
    return set(answer.split())
