"""Circuits between real hosts: a connection like any other, of which the relay sees no word."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.network.exceptions import SwarmException
from multiaddr import Multiaddr

from p2pgrid.net.addresses import Circuit
from p2pgrid.net.host import open_stream_on
from p2pgrid.net.relay.kind import circuit_of, is_relayed
from p2pgrid.net.relay.limits import RelayLimits
from tests.net.relay.rigs import Reserved, call, caller_host, circuit_through, relay_host, reserved_host
from tests.net.trio_hosts import ECHO, contact, echo, run_trio, until


async def say(caller: Any, connection: Any, data: bytes) -> bytes:
    """What comes back of `data` on a fresh stream of the connection."""
    stream = await open_stream_on(caller, connection, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, data)
        found = bytearray()
        while len(found) < len(data):
            found += await stream.read(65536)
    await stream.reset()
    return bytes(found)


def test_a_circuit_carries_an_ordinary_connection() -> None:
    async def main() -> None:
        async with relay_host() as (relay, service), reserved_host(relay) as provider, caller_host() as client:
            connection = await call(client, relay, provider.host)
            assert connection.muxed_conn.peer_id == provider.host.get_id()
            assert is_relayed(connection) and is_relayed(connection.muxed_conn)
            assert circuit_of(connection) == Circuit(str(relay.get_id()), contact(relay).addresses[0])
            data = bytes(range(256)) * 8000
            assert await say(client, connection, data) == data
            assert (service.n_reservations, service.n_circuits) == (1, 1)
            far = provider.host.get_network().get_connections(client.get_id())
            assert [is_relayed(one) for one in far] == [True]
            await connection.close()
            await until(lambda: service.n_circuits == 0, "the circuit is over")
            await until(lambda: not provider.host.get_network().get_connections(client.get_id()), "its far end too")
            assert service.carried_bytes > 2 * len(data)

    run_trio(main)


def test_what_only_a_relay_leads_to_is_dialled_behind_what_leads_there_directly() -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as client:
            there = [circuit_through(relay), *contact(provider.host).addresses]
            direct = await client.get_network().connect_to(provider.host.get_id(), there)
            assert not is_relayed(direct)
        async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as client:
            relayed = await call(client, relay, provider.host)
            assert await client.get_network().connect_to(provider.host.get_id(), there) is relayed
            dialled = await client.get_network().connect_to(
                provider.host.get_id(), contact(provider.host).addresses, direct_only=True
            )
            assert not is_relayed(dialled)
            assert await client.get_network().connect_to(provider.host.get_id(), []) is dialled
            assert await say(client, relayed, b"still here") == b"still here"

    run_trio(main)


@pytest.mark.parametrize(
    ("case", "why"),
    [("no reservation", "no reservation"), ("no relay", "does not relay"), ("nobody", "cannot be reached")],
)
def test_a_circuit_that_cannot_be_had_says_why(case: str, why: str) -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), reserved_host() as provider, caller_host() as client:
            at = relay if case == "no reservation" else provider.host
            address = circuit_through(at)
            if case == "nobody":
                async with relay_host() as (gone, _):
                    address = circuit_through(gone)
            to = relay if case == "no relay" else provider.host
            with pytest.raises(SwarmException, match=why):
                await client.get_network().connect_to(to.get_id(), [address])

    run_trio(main)


def test_there_is_no_relay_of_a_relay() -> None:
    async def main() -> None:
        async with (
            relay_host() as (relay, _),
            relay_host() as (second, service),
            reserved_host(relay) as provider,
            caller_host() as client,
        ):
            await Reserved(second).reserve(relay)  # it is reached through the first,
            await provider.reserve(second)  # and the provider through both
            nested = Multiaddr(f"{circuit_through(relay)}/p2p/{second.get_id()}/p2p-circuit")
            with pytest.raises(SwarmException, match="this way through a relay is not taken"):
                await client.get_network().connect_to(provider.host.get_id(), [nested])
            assert service.n_circuits == 0

    run_trio(main)


def test_what_comes_from_a_relay_without_a_reservation_is_refused() -> None:
    async def main() -> None:
        async with relay_host() as (relay, service), reserved_host(relay) as provider, caller_host() as client:
            provider.reservations.clear()
            with pytest.raises(SwarmException, match="connection failed"):
                await call(client, relay, provider.host)
            assert service.n_circuits == 0
            await echo(provider.host, relay)

    run_trio(main)


def test_a_second_circuit_of_the_same_peer_leaves_the_first_alone() -> None:
    async def main() -> None:
        async with relay_host() as (relay, service), reserved_host(relay) as provider, caller_host() as client:
            first = await call(client, relay, provider.host)
            swarm = client.get_network()
            second = await swarm.circuits.dial(provider.host.get_id(), circuit_of(first))
            assert first is not second and service.n_circuits == 2
            await say(client, second, b"two")
            await second.close()
            await until(lambda: service.n_circuits == 1, "the second is over")
            assert await say(client, first, b"one") == b"one"

    run_trio(main)


def test_a_circuit_ends_with_the_connection_of_either_end() -> None:
    async def main() -> None:
        async with relay_host() as (relay, service), caller_host() as client:
            async with reserved_host(relay) as provider:
                connection = await call(client, relay, provider.host)
                assert service.n_circuits == 1
            await until(lambda: connection.is_closed, "the client knows")
            await until(lambda: service.n_circuits == 0, "the relay knows")
            with pytest.raises(SwarmException, match="no reservation"):
                await call(client, relay, provider.host)
            assert service.n_reservations == 0

    run_trio(main)


def test_an_idle_circuit_is_cut_and_a_busy_one_is_not() -> None:
    async def main() -> None:
        limits = RelayLimits(idle_s=1.5, idle_bytes=64)
        async with relay_host(limits) as (relay, service), reserved_host(relay) as provider, caller_host() as client:
            connection = await call(client, relay, provider.host)
            for _ in range(7):
                assert await say(client, connection, bytes(100)) == bytes(100)
                await trio.sleep(0.3)
            assert service.n_circuits == 1
            await until(lambda: service.n_circuits == 0, "it was idle")
            await until(lambda: connection.is_closed, "the client knows")

    run_trio(main)


def test_a_circuit_lasts_as_long_as_the_relay_lets_it() -> None:
    async def main() -> None:
        limits = RelayLimits(circuit_s=3)
        async with relay_host(limits) as (relay, service), reserved_host(relay) as provider, caller_host() as client:
            began = trio.current_time()
            connection = await call(client, relay, provider.host)
            assert await say(client, connection, b"in time") == b"in time"
            await until(lambda: service.n_circuits == 0, "its time was over")
            assert trio.current_time() - began > 2.5

    run_trio(main)


def test_a_slow_reader_holds_up_its_own_circuit_alone() -> None:
    """And the relay keeps no more for it than its window."""

    async def main() -> None:
        limits = RelayLimits(window_bytes=256 * 1024)
        async with relay_host(limits) as (relay, _), reserved_host(relay) as provider, caller_host() as slow:
            unread = trio.Event()

            async def never_reads(stream: Any) -> None:
                await unread.wait()

            provider.host.set_stream_handler("/p2pgrid-test/sink/1", never_reads)
            connection = await call(slow, relay, provider.host)
            sink = await open_stream_on(slow, connection, "/p2pgrid-test/sink/1")
            sent = 0

            async def send() -> None:
                nonlocal sent
                while True:
                    await sink.muxed_stream.write(bytes(16 * 1024))  # stops when the window is used up
                    sent += 16 * 1024

            async with trio.open_nursery() as nursery, caller_host() as quick:
                nursery.start_soon(send)
                other = await call(quick, relay, provider.host)
                data = bytes(512 * 1024)
                with trio.fail_after(7):
                    assert await say(quick, other, data) == data
                nursery.cancel_scope.cancel()
            assert sent < 2 * 1024 * 1024
            unread.set()

    run_trio(main)


def test_a_circuit_keeps_to_its_pace() -> None:
    async def main() -> None:
        limits = RelayLimits(circuit_bytes_per_s=400_000)
        async with relay_host(limits) as (relay, _), reserved_host(relay) as provider, caller_host() as client:
            connection = await call(client, relay, provider.host)
            began = trio.current_time()
            assert len(await say(client, connection, bytes(400_000))) == 400_000
            took_s = trio.current_time() - began
            assert 0.8 < took_s < 6  # 800 kB in all, of which a second's worth went at once

    run_trio(main)


def test_who_may_go_through_a_relay_waits_for_nobody_who_may_not() -> None:
    """Behind many NATs a port at a private address of another's network swallows all that is sent to it."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            swallows = Multiaddr(f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}")
            async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as client:
                connect_to, there = client.get_network().connect_to, provider.host.get_id()
                async with trio.open_nursery() as nursery:

                    async def dial_in_vain() -> None:
                        await connect_to(there, [swallows], direct_only=True)

                    nursery.start_soon(dial_in_vain)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    with trio.fail_after(7):
                        assert is_relayed(await connect_to(there, [swallows, circuit_through(relay)]))
                    nursery.cancel_scope.cancel()

    run_trio(main)
