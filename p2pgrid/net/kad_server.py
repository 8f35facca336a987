"""The answering half of the DHT: libp2p's kad-dht messages, from our own table and records, bounded.

py-libp2p 0.8.1 has one (`KadDHT`), which is not used here:

| fault | here |
|---|---|
| the protocol id is fixed to `/ipfs/kad/1.0.0` | the network's own |
| whoever asks enters the routing table, clients too | nobody does by asking; `dht.py` admits who answered |
| 12 streams at once with no time limit, so that 12 idle ones block the DHT | 256, 8 for a peer (doors.py), timed |
| requests on one stream are answered as fast as they come | 50 a second for an address, after a burst |
| values of up to 1 MiB are stored for anyone, without validation | none are: such requests end their stream |
| requests of up to 4 MiB are read | 16 KiB |
| a request for one peer is answered with what the host knows of it, from other networks too | its table alone is told |
| 10 provider records in 10 s from one peer, the rest silently dropped | 100, and the stream ends |
| any address that a provider claims is passed on to all who ask | those at which it was met (`address_proof.py`) |
| any number of keys, the first 20 providers of a key, all for 48 hours | `proto/kademlia/records.py` |
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import IncompleteReadError, IOException, MessageTooLarge
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamError
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2pgrid.net.address_proof import AddressProof
from p2pgrid.net.addresses import fitting_addresses, host_of
from p2pgrid.net.host import close_stream
from p2pgrid.net.kad_query import own_record, signed_addresses
from p2pgrid.net.pace import ADD_PROVIDER_WINDOW_S, MAX_ADD_PROVIDER_PER_WINDOW
from p2pgrid.proto.kademlia.groups import group_of
from p2pgrid.proto.kademlia.member import Member
from p2pgrid.proto.kademlia.places import Node
from p2pgrid.proto.kademlia.records import ProviderRecord

IDLE_TIMEOUT_S: Final = 15.0
STREAM_LIFETIME_S: Final = 120.0
MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_KEY_BYTES: Final = 128
_MAX_COUNTED_PEERS: Final = 4096
_MAX_PROVIDERS_READ: Final = 8
"""A peer announces itself alone; others in its message are passed over."""
_Kind: Final = Message.MessageType


@dataclass(frozen=True, slots=True)
class _Asker:
    peer: bytes
    met_at: str
    """The IP address that its connection comes from."""


class KadServer:
    """Answers requests from `start` until `stop`, out of what `member` knows."""

    idle_timeout_s: float = IDLE_TIMEOUT_S

    def __init__(self, host: BasicHost, protocol: str, member: Member, proof: AddressProof) -> None:
        self._member = member
        self._host = host
        self._protocol = protocol
        self._proof = proof
        self._proving: trio.Nursery | None = None
        self._announced_by: Counter[bytes] = Counter()
        self._window_began_s = 0.0

    def start(self, nursery: trio.Nursery | None) -> None:
        """Answer from now on. Announced addresses that have to be proven are dialled in `nursery`, if it is given."""
        self._proving = nursery
        self._host.set_stream_handler(self._protocol, self.handle_stream)

    def stop(self) -> None:
        """Answer nobody any more: whoever asks finds that this is no server."""
        self._host.remove_stream_handler(self._protocol)

    async def handle_stream(self, stream: Any) -> None:
        """One stream: requests and answers, until the asker ends it or breaks a rule."""
        remote = stream.get_remote_address()
        asker = _Asker(stream.muxed_conn.peer_id.to_bytes(), str(remote[0]) if remote else "")
        is_well = False
        with trio.move_on_after(STREAM_LIFETIME_S):
            is_well = await self._converse(stream, asker)
        await (close_stream(stream) if is_well else stream.reset())

    async def _converse(self, stream: Any, asker: _Asker) -> bool:
        """False where the stream is to be reset."""
        while True:
            try:
                with trio.fail_after(self.idle_timeout_s):
                    raw = await read_varint_prefixed_bytes_limited(stream, MAX_REQUEST_BYTES)
            except IncompleteReadError as error:
                return bool(error.received_bytes == 0)
            except (MessageTooLarge, ParseError, ValueError, IOException, StreamError, trio.TooSlowError):
                return False
            answer = self.answer(raw, asker.peer, asker.met_at)
            if answer is None:
                return False
            await self._host.doors.pace(stream)
            await stream.write(encode_varint_prefixed(answer))

    def answer(self, raw: bytes, peer: bytes, met_at: str) -> bytes | None:
        """The answer to a request of `peer`, whose connection comes from `met_at`; None for one that gets none."""
        request = Message()
        try:
            request.ParseFromString(raw)
        except (DecodeError, UnicodeDecodeError):
            return None
        answer = Message()
        answer.type = request.type
        if request.type == _Kind.PING:
            return bytes(answer.SerializeToString())
        if not 0 < len(request.key) <= MAX_KEY_BYTES:
            return None
        answer.key = request.key
        answer.senderRecord = own_record(self._host)
        if request.type == _Kind.ADD_PROVIDER:
            if not self._may_announce(peer):
                return None
            self._take_announcement(request, _Asker(peer, met_at))
        elif request.type in (_Kind.FIND_NODE, _Kind.GET_PROVIDERS):
            if request.type == _Kind.GET_PROVIDERS:
                self._add_providers(answer, request.key)
            elif request.key == self._member.own:
                self._add(answer.closerPeers, self._member.own, (a.to_bytes() for a in self._host.get_addrs()))
            self._add_closer(answer, self._member.closest(request.key, peer))
        else:
            return None
        return bytes(answer.SerializeToString())

    def _take_announcement(self, request: Any, asker: _Asker) -> None:
        for one in [one for one in request.providerPeers[:_MAX_PROVIDERS_READ] if one.id == asker.peer][:1]:
            addresses = fitting_addresses(one.addrs, circuits=True)
            signed = one.signedRecord if signed_addresses(one.signedRecord, asker.peer, circuits=True) else b""
            known = self._proof.known(asker.peer, addresses, asker.met_at)
            if self._proof.needs_proof(addresses, known) and self._proving is not None:
                self._proving.start_soon(self._keep_when_proven, request.key, addresses, signed, asker)
            else:
                self._keep(request.key, known, signed, asker)

    async def _keep_when_proven(self, key: bytes, addresses: tuple[bytes, ...], signed: bytes, asker: _Asker) -> None:
        known = await self._proof.prove(asker.peer, addresses, asker.met_at)
        self._keep(key, known, signed, asker)

    def _keep(self, key: bytes, addresses: tuple[bytes, ...], signed: bytes, asker: _Asker) -> None:
        """`addresses` may be told to others; the signed record only if it names no public one beside them."""
        if not addresses:
            return
        in_record = signed_addresses(signed, asker.peer, circuits=True)
        told = set(addresses)
        if in_record is None or any(
            group_of(host_of(raw)) and raw not in told for raw in (a.to_bytes() for a in in_record[0])
        ):
            signed = b""
        record = ProviderRecord(asker.peer, addresses, group_of(asker.met_at), signed, trio.current_time())
        self._member.records.add(key, record)

    def _may_announce(self, peer: bytes) -> bool:
        now_s = trio.current_time()
        if now_s - self._window_began_s > ADD_PROVIDER_WINDOW_S or len(self._announced_by) > _MAX_COUNTED_PEERS:
            self._window_began_s = now_s
            self._announced_by.clear()
        self._announced_by[peer] += 1
        return self._announced_by[peer] <= MAX_ADD_PROVIDER_PER_WINDOW

    def _add_providers(self, answer: Any, key: bytes) -> None:
        for record in self._member.records.of(key, trio.current_time(), random.random):
            one = self._add(answer.providerPeers, record.peer, record.addresses)
            if record.signed:
                one.signedRecord = record.signed

    def _add_closer(self, answer: Any, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self._add(answer.closerPeers, node.peer, node.addresses)

    def _add(self, peers: Any, peer: bytes, addresses: Iterable[bytes]) -> Any:
        one = peers.add()
        one.id = peer
        one.addrs.extend(addresses)
        one.connection = Message.ConnectionType.CAN_CONNECT
        return one
