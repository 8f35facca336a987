"""Links over libp2p: who may come, who answers, what a crash of the host does, and a peer on libp2p as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pgrid.errors import LocalError, Refused, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.keeper import Backoff, LinkKeeper
from p2pgrid.net.libp2p_road import PROTOCOL, open_session
from p2pgrid.net.listening import ListenLimits
from p2pgrid.net.network import Network
from p2pgrid.net.offer_exchange import close_if_idle
from p2pgrid.net.road import Road
from p2pgrid.net.stream_reader import Received, StreamReader
from p2pgrid.net.stream_road import StreamRoad
from tests.net.road_rigs import (
    CLIENT,
    CONTROL,
    FAST,
    LOOPBACK,
    OTHER,
    PROVIDER,
    RawPeer,
    dialled,
    libp2p_road,
)
from tests.net.trio_hosts import connect, contact, dialling_host, listening_host, run_trio
from tests.net.trio_hosts import until as trio_until

STOCK_PEER = Path(__file__).parent / "stock_peer.py"


async def crash(network: Network) -> None:
    """End the host's trio program by an error that nothing foresaw."""

    async def fault() -> None:
        raise RuntimeError("a crash on purpose")

    async def spawn() -> None:
        trio.lowlevel.spawn_system_task(fault)
        await trio.sleep_forever()

    with contextlib.suppress(LocalError):
        await network._thread.call(spawn)


async def until(condition: Any, deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - the trio side tells of no such event
            await asyncio.sleep(0.005)


async def ask(link: LinkConnection, text: bytes) -> None:
    reader = StreamReader()
    link.open_stream(reader).send(CONTROL, text)
    assert await asyncio.wait_for(reader.receive(), 10) == Received(CONTROL, text)


# -- who answers -----------------------------------------------------------------------------------------------


async def test_a_link_says_which_road_it_is_on() -> None:
    async with libp2p_road() as provider, dialled(provider) as link:
        assert link.road is Road.LIBP2P
        await ask(link, b"hello")
        [served] = provider.listener.connections
        assert (served.road, served.peer) == (Road.LIBP2P, CLIENT.public_key)


async def test_another_peer_at_the_address_is_found_out_by_noise() -> None:
    async with libp2p_road() as provider:
        with pytest.raises(Unreachable, match=OTHER.public_key.peer_id):
            await provider.client.dial_link(OTHER.public_key, provider.provider.addresses)
        bare = [address.partition("/p2p/")[0] for address in provider.provider.addresses]
        with pytest.raises(Unreachable, match="cannot be reached"):
            await provider.client.dial_link(OTHER.public_key, bare)
        assert not provider.listener.connections


async def test_a_peer_that_takes_no_links_says_so() -> None:
    async with Network(PROVIDER, "test", listen=[LOOPBACK]) as provider, Network(CLIENT, "test") as client:
        with pytest.raises(Unreachable, match=f"does not speak {PROTOCOL}"):
            await client.dial_link(PROVIDER.public_key, provider.addresses)
        with pytest.raises(Unreachable, match="no address is known"):
            await client.dial_link(OTHER.public_key, [])


async def test_a_silent_address_is_given_up_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 20)

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server, Network(CLIENT, "test") as client:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match=r"within 0\.3 s"):
            await client.dial_link(PROVIDER.public_key, [f"/ip4/127.0.0.1/tcp/{port}"], timeout_s=0.3)


async def test_a_host_that_has_stopped_is_no_fault_of_the_callers_loop() -> None:
    async with libp2p_road() as provider:
        await provider.client._thread.stop()
        with pytest.raises(Unreachable, match="has been stopped"):
            await provider.dial()


# -- who may come ----------------------------------------------------------------------------------------------


async def test_a_peer_holds_no_more_links_than_it_may_and_others_still_come() -> None:
    """The hostile peer opens streams of sessions as fast as it can."""
    async with libp2p_road(limits=ListenLimits(max_connections_per_peer=3)) as provider:
        held = [await provider.dial() for _ in range(3)]
        refused = await asyncio.gather(*(provider.dial() for _ in range(10)), return_exceptions=True)
        assert {type(one) for one in refused} == {Unreachable}
        assert provider.listener.refused_connections == 10
        await ask(held[0], b"still served")
        async with Network(OTHER, "test") as other:
            link = await other.dial_link(PROVIDER.public_key, provider.provider.addresses)
            await ask(link, b"me too")
            await link.aclose()
        await held[0].aclose()
        await until(lambda: provider.listener.seats.taken == 2)
        await ask(await provider.dial(), b"room again")


@pytest.mark.parametrize("limits", [ListenLimits(max_connections=1), ListenLimits(max_connections_per_address=1)])
async def test_the_other_caps_are_those_of_the_direct_road(limits: ListenLimits) -> None:
    async with libp2p_road(limits=limits) as provider, dialled(provider), Network(OTHER, "test") as other:
        with pytest.raises(Unreachable):
            await other.dial_link(PROVIDER.public_key, provider.provider.addresses)


async def test_who_opens_a_session_and_says_nothing_is_sent_away() -> None:
    async with libp2p_road(limits=ListenLimits(link=FAST)) as provider:
        raw = await RawPeer.dial(provider)
        assert await asyncio.wait_for(raw.rest(), 10)  # HELLO, GOAWAY, the end
        await until(lambda: not provider.listener.connections and not provider.listener.seats.taken)


async def test_a_listener_that_closes_takes_no_more() -> None:
    async with libp2p_road() as provider:
        link = await provider.dial()
        await provider.listener.aclose(drain_s=0)
        await asyncio.wait_for(asyncio.shield(link.closed), 10)
        with pytest.raises(Unreachable):
            await provider.dial()


async def test_the_key_of_the_link_is_proven_on_the_link_itself() -> None:
    """A host may carry the links of another key than its own: the road's key is not taken for the client's."""
    turned_away: list[object] = []

    def admit(key: object) -> None:
        turned_away.append(key)
        raise Refused("not-allowed", "nobody comes in.")

    async with libp2p_road(admit=admit) as provider:
        provider.client._secret_key = OTHER
        with pytest.raises(Refused, match="nobody comes in"):
            await provider.dial()
        assert turned_away == [OTHER.public_key]


# -- dials that are given up, connections that are shared --------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 60])
async def test_a_cancelled_dial_leaves_nothing_behind(turns: int) -> None:
    async with libp2p_road() as provider:
        dialling = asyncio.create_task(provider.dial())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        dialling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await dialling).aclose()
        await until(lambda: not provider.listener.seats.taken and not provider.listener.connections)
        async with dialled(provider) as link:
            await ask(link, b"and the next one is made")


def test_a_question_that_ends_does_not_close_the_connection_under_a_dial() -> None:
    """Whoever asks for an offer closes the connection it made for it, unless somebody else is about to use it."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with listening_host() as provider, dialling_host() as client, trio.open_nursery() as nursery:
            may_answer, swarm = trio.Event(), provider.get_network()
            negotiate = swarm.common_stream_handler

            async def negotiate_late(stream: Any) -> None:
                await may_answer.wait()
                await negotiate(stream)

            async def stay(stream: Any) -> None:
                await trio.sleep_forever()

            provider.set_stream_handler(PROTOCOL, stay)
            await connect(client, provider)
            swarm.set_stream_handler(negotiate_late)
            nursery.start_soon(open_session, client, contact(provider), StreamRoad(loop), nursery, 5.0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await close_if_idle(client.get_network(), contact(provider))
            assert client.get_network().get_connections(provider.get_id())
            may_answer.set()
            [connection] = client.get_network().get_connections(provider.get_id())
            await trio_until(
                lambda: PROTOCOL in [one.get_protocol() for one in connection.get_streams()], "the stream is open"
            )
            await close_if_idle(client.get_network(), contact(provider))
            assert client.get_network().get_connections(provider.get_id())
            nursery.cancel_scope.cancel()

    run_trio(main)
    loop.close()


# -- crashes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["client", "provider"])
async def test_a_crash_of_a_host_loses_the_link_and_the_keeper_dials_again(whose: str) -> None:
    async with libp2p_road() as provider:
        keeper = LinkKeeper(provider.dial, rng=random.Random(1), backoff=Backoff(first_s=0.05, most_s=0.2), name="p")
        link = await keeper.link(10)
        reader = StreamReader()
        link.open_stream(reader).send(CONTROL, b"first")
        await reader.receive()
        await crash(getattr(provider, whose))
        with pytest.raises(Unreachable, match="was lost") as lost:
            await asyncio.wait_for(reader.receive(), 10)
        if whose == "client":
            assert "the libp2p host stopped" in lost.value.message
        assert isinstance(link.reason, Unreachable)
        again = await keeper.link(10)
        assert again is not link
        await ask(again, b"as before")
        await keeper.aclose()


async def test_a_dial_while_the_host_is_down_waits_for_it() -> None:
    async with libp2p_road() as provider:
        await crash(provider.client)
        link = await provider.dial()
        await ask(link, b"hello")
        await link.aclose()


# -- others' libp2p ----------------------------------------------------------------------------------------------


async def test_a_peer_on_libp2p_as_it_comes_buys_over_the_same_road() -> None:
    """py-libp2p 0.8.1 with none of our patches, in a process of its own: handshake, messages, bulk past any window."""
    async with libp2p_road() as provider:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(STOCK_PEER),
            provider.provider.addresses[0],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
        assert output.split() == [b"ready", b"echoed", b"bulk", b"ended"], errors.decode()[-2000:]
