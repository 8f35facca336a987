"""Asking real hosts for their offer: honest ones, and ones that break the rules."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.exceptions import StreamError
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from p2pgrid.errors import P2pgridError, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.offer_exchange import (
    CAPACITY,
    MAX_OFFER_BYTES,
    OFFER,
    PROTOCOL,
    Document,
    fetch_document,
    fetch_offer,
    serve_document,
    serve_offers,
)
from tests.net.trio_hosts import connect, contact, dialling_host, echo, listening_host, run_trio, until


@pytest.mark.parametrize("offer", [b"x", bytes(MAX_OFFER_BYTES)])
def test_an_offer_comes_as_it_is_now(offer: bytes) -> None:
    async def main() -> None:
        current = b"older"

        async def current_offer() -> bytes:
            return current

        async with listening_host() as provider, dialling_host() as client:
            serve_offers(provider, current_offer)
            assert await fetch_offer(client, contact(provider), 5) == b"older"
            current = offer
            assert await fetch_offer(client, contact(provider), 5) == offer
            await until(lambda: not client.get_network().get_connections(), "the connection is not kept")
            await connect(client, provider)
            assert await fetch_offer(client, contact(provider), 5) == offer
            assert client.get_network().get_connections(), "a connection that was there stays"

    run_trio(main)


def test_questions_at_once_share_a_connection_and_the_last_closes_it() -> None:
    async def main() -> None:
        turns: list[trio.Event] = [trio.Event(), trio.Event()]

        async def first() -> bytes:
            await turns[0].wait()
            return b"offer"

        async def second() -> bytes:
            await turns[1].wait()
            return b"capacity"

        for order in ((0, 1), (1, 0)):
            turns[:] = [trio.Event(), trio.Event()]
            async with listening_host() as provider, dialling_host() as client:
                serve_offers(provider, first)
                serve_document(provider, CAPACITY, second)
                got: list[bytes] = []

                async def ask(document: Document, at: Contact, client: Any = client, got: Any = got) -> None:
                    got.append(await fetch_document(client, document, at, 30))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, OFFER, contact(provider))
                    nursery.start_soon(ask, CAPACITY, contact(provider))
                    for n, turn in enumerate(order, 1):
                        await until(lambda client=client: client.get_network().get_connections(), "connected")
                        turns[turn].set()
                        await until(lambda got=got, n=n: len(got) == n, "an answer")
                assert sorted(got) == [b"capacity", b"offer"]
                await until(lambda client=client: not client.get_network().get_connections(), "it is not kept")

    run_trio(main)


def test_an_answer_does_not_wait_until_its_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, close = trio.Event(), trio.Event(), SwarmConn.close

    async def slow_close(connection: SwarmConn) -> None:
        begun.set()
        await may_end.wait()
        await close(connection)

    async def main() -> None:
        async with listening_host() as provider, dialling_host() as client:
            serve_offers(provider, _an_offer)
            monkeypatch.setattr(SwarmConn, "close", slow_close)
            assert await fetch_offer(client, contact(provider), 5) == b"offer"
            assert not begun.is_set()
            await begun.wait()
            may_end.set()
            await until(lambda: not client.get_network().get_connections(), "the connection is not kept")

    run_trio(main)


def test_who_asks_again_at_once_is_not_given_the_connection_that_ends() -> None:
    async def main() -> None:
        async with listening_host() as provider, dialling_host() as client:
            serve_offers(provider, _an_offer)
            for _ in range(4):
                assert await fetch_offer(client, contact(provider), 5) == b"offer"
                assert not client.get_network().is_connected(provider.get_id())
            await echo(client, provider)
            assert await fetch_offer(client, contact(provider), 5) == b"offer"
            assert client.get_network().is_connected(provider.get_id()), "the one that was made for another use stays"
            await until(lambda: len(client.get_network().get_connections()) == 1, "the others are closed")

    run_trio(main)


async def _an_offer() -> bytes:
    return b"offer"


def test_a_host_that_listens_nowhere_says_who_it_is_at_once() -> None:
    async def main() -> None:
        async with listening_host() as provider, dialling_host() as client:
            await connect(client, provider)
            stream = await provider.new_stream(client.get_id(), [IDENTIFY])
            with trio.fail_after(0.4):  # libp2p's own waits half a second for an address
                raw = await read_varint_prefixed_bytes_limited(stream, 4096)
            assert parse_identify_response(raw).public_key == client.get_public_key().serialize()

    run_trio(main)


def test_nothing_offered_is_a_refusal() -> None:
    async def main() -> None:
        async def no_offer() -> None:
            return None

        async with listening_host() as provider, dialling_host() as client:
            with pytest.raises(Refused, match="does not speak") as caught:
                await fetch_offer(client, contact(provider), 5)
            assert caught.value.code == "no-offer"
            serve_offers(provider, no_offer)
            with pytest.raises(Refused, match="has no offer now") as caught:
                await fetch_offer(client, contact(provider), 5)
            assert caught.value.code == "no-offer"

    run_trio(main)


def test_a_provider_whose_offer_fails_resets_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def too_long() -> bytes:
            return bytes(MAX_OFFER_BYTES + 1)

        async with listening_host() as provider, dialling_host() as client:
            serve_offers(provider, too_long)
            with pytest.raises(Unreachable):
                await fetch_offer(client, contact(provider), 5)
            await echo(client, provider)

    run_trio(main)
    assert "at most 65536" in caplog.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\xff\xff\xff\xff" + bytes(1000), ProtocolViolation),
        ((MAX_OFFER_BYTES + 1).to_bytes(4), ProtocolViolation),
        (b"\x00\x00\x00\x09half", ProtocolViolation),
        (b"\x00\x00", ProtocolViolation),
        (b"", ProtocolViolation),
    ],
)
def test_a_peer_that_breaks_the_rules(answer: bytes, expected: type[P2pgridError]) -> None:
    async def main() -> None:
        async def breaks_them(stream: Any) -> None:
            if answer:
                await stream.write(answer)
            await stream.close()

        async with listening_host() as provider, dialling_host() as client:
            provider.set_stream_handler(PROTOCOL, breaks_them)
            with pytest.raises(expected):
                await fetch_offer(client, contact(provider), 5)

    run_trio(main)


def test_a_peer_that_says_nothing_or_hangs_up() -> None:
    async def main() -> None:
        async def silent(stream: Any) -> None:
            await trio.sleep_forever()

        async def hangs_up(stream: Any) -> None:
            await stream.write(b"\x00\x00\x00\x09half")
            await stream.muxed_conn.close()

        async with listening_host() as provider, dialling_host() as client:
            provider.set_stream_handler(PROTOCOL, silent)
            with pytest.raises(Unreachable, match=r"in 0\.2 s"):
                await fetch_offer(client, contact(provider), 0.2)
            provider.set_stream_handler(PROTOCOL, hangs_up)
            with pytest.raises(Unreachable):
                await fetch_offer(client, contact(provider), 5)
            gone = contact(provider)
        async with dialling_host() as client:
            with pytest.raises(Unreachable, match="cannot be reached"):
                await fetch_offer(client, gone, 5)
            with pytest.raises(Unreachable, match="no address"):
                await fetch_offer(client, Contact(gone.peer_id, ()), 5)

    run_trio(main)


def test_an_asker_that_goes_away_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asked, go_on = trio.Event(), trio.Event()

        async def slow_offer() -> bytes:
            asked.set()
            await go_on.wait()
            return b"offer"

        async with listening_host() as provider, dialling_host() as client:
            serve_offers(provider, slow_offer)
            await connect(client, provider)
            stream = await client.new_stream(provider.get_id(), [PROTOCOL])
            await asked.wait()
            await stream.reset()
            with pytest.raises(StreamError):
                await stream.read(1)
            go_on.set()
            assert await fetch_offer(client, contact(provider), 5) == b"offer"

    run_trio(main)
    assert caplog.records == []
