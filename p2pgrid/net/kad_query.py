"""One question to one server of the DHT, and its answer with everything hostile cut off.

libp2p's Kademlia message (kad-dht/README.md of the libp2p specs), one request and one response on a fresh stream.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.envelope import consume_envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.addresses import fitting_addresses, host_of, usable_addresses
from p2pgrid.net.host import close_stream, open_stream, reset_stream
from p2pgrid.proto.kademlia.claims import Address, Claim
from p2pgrid.proto.kademlia.groups import groups_of
from p2pgrid.proto.kademlia.places import Node, place_of

ASK_TIMEOUT_S: Final = 6.0
SILENCE_IS_CONSENT_S: Final = 1.0
"""After a provider record was sent."""
MAX_ANSWER_BYTES: Final = 256 * 1024
MAX_RECORD_BYTES: Final = 4096
_MAX_CLOSER_PEERS: Final = 20
"""A server answers with the 20 it knows closest to the key."""
_MAX_PROVIDERS: Final = 64
_ED25519_ID_PREFIX: Final = bytes.fromhex("002408011220")
_REMEMBERED_RECORDS: Final = 1024
"""Every server that knows a provider sends the same record of it."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer and where to dial it."""

    peer_id: ID
    addresses: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `sender` carries the addresses that it signs for itself, if it sent any."""

    sender: Contact
    closer: tuple[Node, ...]
    providers: tuple[Claim, ...]


def node_of(peer: bytes, addresses: Sequence[bytes]) -> Node:
    """A server as Kademlia's rules have it."""
    return Node(peer, place_of(peer), groups_of(map(host_of, addresses)), tuple(addresses))


def contact_of(node: Node) -> Contact:
    """A server as libp2p has it. Servers are asked over no relay: one that needs a relay is no server."""
    peer_id = ID(node.peer)
    return Contact(peer_id, tuple(usable_addresses(node.addresses, str(peer_id))))


class KadQuery:
    """Asks servers of one network's DHT, over `protocol`."""

    def __init__(self, host: BasicHost, protocol: str, timeout_s: float = ASK_TIMEOUT_S) -> None:
        self._host = host
        self._protocol = protocol
        self._timeout_s = timeout_s

    async def find_node(self, server: Contact, key: bytes) -> Answer:
        """The server's closest peers to `key`. Raises what libp2p raises, trio.TooSlowError, ProtocolViolation."""
        return await self._ask(server, Message.MessageType.FIND_NODE, key)

    async def get_providers(self, server: Contact, key: bytes) -> Answer:
        """The server's provider records for `key`, and its closest peers. Raises as `find_node`."""
        return await self._ask(server, Message.MessageType.GET_PROVIDERS, key)

    async def add_provider(self, server: Contact, key: bytes) -> None:
        """Tell the server that we provide `key`. Returns once it has said so, ended the stream, or kept silent.

        The kad-dht specification has no answer to it: py-libp2p repeats the message, js-libp2p takes it and waits for
        the next one.
        """
        message = self._message(Message.MessageType.ADD_PROVIDER, key)
        provider = message.providerPeers.add()
        provider.id = self._host.get_id().to_bytes()
        provider.addrs.extend(address.to_bytes() for address in self._host.get_addrs())
        provider.signedRecord = message.senderRecord
        async with self._stream(server) as stream:
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
            with trio.move_on_after(SILENCE_IS_CONSENT_S), suppress(StreamEOF):
                await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES)

    async def _ask(self, server: Contact, kind: Any, key: bytes) -> Answer:
        return parse_answer(await self._exchange(server, self._message(kind, key)), kind, server)

    def _message(self, kind: Any, key: bytes) -> Any:
        message = Message()
        message.type = kind
        message.key = key
        message.senderRecord = own_record(self._host)
        return message

    async def _exchange(self, server: Contact, message: Any) -> bytes:
        async with self._stream(server) as stream:
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
            raw: bytes = await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES)
        return raw

    @asynccontextmanager
    async def _stream(self, server: Contact) -> AsyncIterator[Any]:
        """A stream to the server, for as long as an answer may take."""
        with trio.fail_after(self._timeout_s):
            stream = await open_stream(self._host, server.peer_id, server.addresses, self._protocol)
            try:
                yield stream
            except StreamEOF:
                await close_stream(stream)
                raise
            except BaseException:
                await reset_stream(stream)
                raise
            await close_stream(stream)


def own_record(host: BasicHost) -> bytes:
    """The host's signed peer record (RFC 0003 of the libp2p specs), as it is sent with every message."""
    record: bytes = env_to_send_in_RPC(host)[0]
    return record


def parse_answer(raw: bytes, kind: int, server: Contact) -> Answer:
    """What `server` said to a request of that kind. Raises ProtocolViolation for bytes that are no answer to it."""
    answer = Message()
    try:
        answer.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ProtocolViolation(f"{server.peer_id} sent no message of the DHT: {error}.") from None
    if answer.type != kind:
        raise ProtocolViolation(f"{server.peer_id} answered a DHT request of type {kind} with type {answer.type}.")
    signed = signed_addresses(answer.senderRecord, server.peer_id.to_bytes())
    return Answer(
        sender=Contact(server.peer_id, signed[0]) if signed and signed[0] else server,
        closer=tuple(filter(None, map(_node, answer.closerPeers[:_MAX_CLOSER_PEERS]))),
        providers=tuple(filter(None, map(_claim, answer.providerPeers[:_MAX_PROVIDERS]))),
    )


@functools.lru_cache(_REMEMBERED_RECORDS)
def signed_addresses(
    envelope: bytes, peer: bytes, *, circuits: bool = False
) -> tuple[tuple[Multiaddr, ...], int] | None:
    """The addresses that `peer` itself signed (RFC 0003 of the libp2p specs) with their number, if it did.

    `circuits`: whether to take those over relays too.
    """
    if not 0 < len(envelope) <= MAX_RECORD_BYTES:
        return None
    peer_id = ID(peer)
    try:
        signed, record = consume_envelope(envelope, "libp2p-peer-record")
        signer = ID.from_pubkey(signed.public_key)
    except Exception:  # noqa: BLE001 (protobuf, key and multiaddr parsers raise anything; unproven means unsigned)
        return None
    if signer != peer_id or record.peer_id != peer_id:
        return None
    sent = (address.to_bytes() for address in record.addrs)
    return tuple(usable_addresses(sent, str(peer_id), circuits=circuits)), int(record.seq)


def is_ed25519(raw_id: bytes) -> bool:
    """True for a peer id of the only kind of key that the grid knows."""
    return len(raw_id) == len(_ED25519_ID_PREFIX) + 32 and raw_id.startswith(_ED25519_ID_PREFIX)


def _node(peer: Any) -> Node | None:
    if not is_ed25519(peer.id):
        return None
    addresses = fitting_addresses(peer.addrs)
    return node_of(peer.id, addresses) if addresses else None


def _claim(peer: Any) -> Claim | None:
    if not is_ed25519(peer.id):
        return None
    signed = signed_addresses(peer.signedRecord, peer.id, circuits=True)
    if signed is not None and signed[0]:
        addresses, signed_at = signed
        return Claim(peer.id, _addresses(address.to_bytes() for address in addresses), signed_at)
    hearsay = usable_addresses(peer.addrs, str(ID(peer.id)), circuits=True)
    return Claim(peer.id, _addresses(address.to_bytes() for address in hearsay)) if hearsay else None


def _addresses(raw: Any) -> tuple[Address, ...]:
    return tuple(Address(host_of(one), one) for one in raw)
