"""Servers of other implementations: they sign no addresses into the DHT's messages, and answer no ADD_PROVIDER."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net import listen_addresses as module
from p2pgrid.net.host import open_host
from p2pgrid.net.kad_query import ASK_TIMEOUT_S, KadQuery, contact_of
from p2pgrid.net.listen_addresses import MAX_ANSWER_BYTES, listen_addresses
from tests.net.test_dht import KAD, KEY, Node, node
from tests.net.trio_hosts import LOOPBACK, connect, contact, listening_host, new_key, run_trio, until


@asynccontextmanager
async def stranger(first: Node, *, listens: bool = True) -> AsyncIterator[tuple[BasicHost, trio.Event]]:
    """A host that answers the DHT without a record of its own, connected to `first`; an event: it was asked."""
    asked = trio.Event()

    async def answer(stream: Any) -> None:
        request = Message()
        request.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 16384))
        if request.type == Message.MessageType.ADD_PROVIDER:
            await stream.read()  # until they end it, as js-libp2p does
            return
        await stream.write(encode_varint_prefixed(Message(type=request.type, key=request.key).SerializeToString()))
        await stream.close()
        asked.set()

    async with open_host(new_key(), [LOOPBACK] if listens else []) as host:
        host.set_stream_handler(KAD, answer)
        await connect(host, first.host)
        yield host, asked


def test_others_hear_of_it_with_the_addresses_of_identify() -> None:
    async def main() -> None:
        async with node([]) as first, stranger(first) as (host, _asked), listening_host() as asker:
            await until(lambda: str(host.get_id()) in first.table(), "the stranger is known")
            await connect(asker, first.host)
            answer = await KadQuery(asker, KAD).find_node(contact(first.host), KEY)
            assert tuple(map(contact_of, answer.closer)) == (contact(host),)
            # ... and is asked by who looks something up.
            async with node([first]) as later:
                assert str(host.get_id()) in later.table()

    run_trio(main)


def test_one_without_an_address_is_told_to_nobody() -> None:
    async def main() -> None:
        async with node([]) as first, stranger(first, listens=False) as (host, asked):
            await asked.wait()
            async with node([first]) as later:
                assert later.table() == {first.peer_id}
            assert str(host.get_id()) not in first.table()

    run_trio(main)


def test_a_provider_record_is_taken_in_silence() -> None:
    async def main() -> None:
        async with node([]) as first, stranger(first) as (host, _asked):
            await until(lambda: str(host.get_id()) in first.table(), "the stranger is known")
            with trio.fail_after(ASK_TIMEOUT_S / 2):
                assert await first.dht.announce(KEY) == 1

    run_trio(main)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"\x05hello", ProtocolViolation),
        (encode_varint_prefixed(b"\x12\x01"), ProtocolViolation),
        (encode_varint_prefixed(bytes(MAX_ANSWER_BYTES + 1)), Exception),
        (b"", Exception),
        (None, trio.TooSlowError),
    ],
    ids=["no protobuf", "cut off", "too long", "nothing", "silence"],
)
def test_what_is_no_answer(said: bytes | None, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 6.0 if said is not None else 0.2)

    async def hostile(stream: Any) -> None:
        if said is None:
            await trio.sleep_forever()
        await stream.write(said or b"")
        await stream.close()

    async def main() -> None:
        async with listening_host() as host, listening_host() as asker:
            host.set_stream_handler(IDENTIFY, hostile)
            await connect(asker, host)
            with pytest.raises(error):
                await listen_addresses(asker, host.get_id())

    run_trio(main)


def test_addresses_that_lead_nowhere_are_left_out() -> None:
    async def main() -> None:
        async with listening_host() as host, listening_host() as asker:

            async def tell(stream: Any) -> None:
                good = host.get_transport_addrs()[0].to_bytes()
                told = Identify(listen_addrs=[b"\x00\xff", b"\x04\x00\x00\x00\x00\x06\x00\x00", good, good])
                await stream.write(encode_varint_prefixed(told.SerializeToString()))
                await stream.close()

            host.set_stream_handler(IDENTIFY, tell)
            await connect(asker, host)
            assert await listen_addresses(asker, host.get_id()) == contact(host).addresses

    run_trio(main)
