"""A relay against hostile peers: what it refuses, and with which word; what it keeps in memory for them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed

from p2pgrid.errors import Refused
from p2pgrid.net.host import open_stream_on, reset_stream
from p2pgrid.net.relay import messages
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.messages import HOP, STOP
from p2pgrid.net.relay.status import Status
from tests.net.relay.rigs import Reserved, call, caller_host, relay_host, reserved_host
from tests.net.trio_hosts import connect, dialling_host, echo, listening_host, run_trio, until

PROTOCOL_MESSAGES: dict[str, tuple[bytes, Status]] = {
    "no protobuf": (encode_varint_prefixed(b"\xff" * 9), Status.MALFORMED_MESSAGE),
    "a length without end": (b"\xff" * 11, Status.MALFORMED_MESSAGE),
    "too long": (b"\xff\xff\x03", Status.MALFORMED_MESSAGE),
    "a status": (
        encode_varint_prefixed(messages.hop_status(Status.OK).SerializeToString()),
        Status.UNEXPECTED_MESSAGE,
    ),
    "a circuit to nobody": (encode_varint_prefixed(b"\x08\x01"), Status.MALFORMED_MESSAGE),
    "a circuit to an odd name": (encode_varint_prefixed(b"\x08\x01\x12\x04\x0a\x02\x12\x20"), Status.MALFORMED_MESSAGE),
}


async def ask(caller: BasicHost, connection: Any, data: bytes) -> int:
    """The status that a relay answers to the bytes."""
    stream = await open_stream_on(caller, connection, HOP)
    await stream.write(data)
    answer = await messages.read_hop(stream)
    await reset_stream(stream)
    return messages.status_in(answer)


def test_a_malformed_request_is_answered_and_costs_nothing_else() -> None:
    async def main() -> None:
        async with relay_host() as (relay, service), caller_host() as caller:
            connection = await connect(caller, relay)
            for name, (data, status) in PROTOCOL_MESSAGES.items():
                assert await ask(caller, connection, data) == status, name
            assert service.n_reservations == service.n_circuits == 0
            await echo(caller, relay)

    run_trio(main)


def test_who_says_nothing_is_let_go() -> None:
    async def main() -> None:
        async with relay_host(RelayLimits(answer_s=0.3)) as (relay, _), caller_host() as caller:
            stream = await open_stream_on(caller, await connect(caller, relay), HOP)
            with pytest.raises(IOException), trio.fail_after(8):
                await stream.read(1)

    run_trio(main)


def test_reservations_are_capped_by_address() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            relay, service = await stack.enter_async_context(relay_host(RelayLimits(reservations_per_ip=2)))
            for _ in range(2):
                await stack.enter_async_context(reserved_host(relay))
            third = await stack.enter_async_context(reserved_host())
            with pytest.raises(Refused, match="reservation refused"):
                await third.reserve(relay)
            assert service.n_reservations == 2

    run_trio(main)


def test_a_reservation_goes_with_the_connection() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            relay, service = await stack.enter_async_context(relay_host(RelayLimits(reservations=1)))
            async with reserved_host(relay):
                assert service.n_reservations == 1
            second = await stack.enter_async_context(reserved_host())
            with trio.fail_after(20):
                while True:  # until the relay has seen the end of the first one's connection
                    with contextlib.suppress(Refused):
                        await second.reserve(relay)
                        break
                    await trio.sleep(0.01)
            assert service.n_reservations == 1

    run_trio(main)


def test_neither_reservation_nor_circuit_is_given_over_a_circuit() -> None:
    async def main() -> None:
        async with (
            relay_host() as (first, _),
            relay_host() as (second, service),
            reserved_host() as provider,
            caller_host() as caller,
        ):
            # The second relay is reached through the first, as a reserved peer.
            await Reserved(second).reserve(first)
            relayed = await call(caller, first, second)
            request = encode_varint_prefixed(messages.reserve_request().SerializeToString())
            assert await ask(caller, relayed, request) == Status.PERMISSION_DENIED
            await provider.reserve(second)
            request = encode_varint_prefixed(messages.connect_request(provider.host.get_id()).SerializeToString())
            assert await ask(caller, relayed, request) == Status.PERMISSION_DENIED
            assert (service.n_reservations, service.n_circuits) == (1, 0)

    run_trio(main)


def test_who_may_not_use_the_relay_is_refused() -> None:
    async def main() -> None:
        friends: set[ID] = set()
        async with relay_host(allow=friends.__contains__) as (relay, _), reserved_host() as provider:
            with pytest.raises(Refused, match="permission denied"):
                await provider.reserve(relay)
            friends.add(provider.host.get_id())
            await provider.reserve(relay)

    run_trio(main)


@pytest.mark.parametrize("limits", [RelayLimits(circuits_per_peer=1), RelayLimits(circuits_per_ip=1)])
def test_a_circuit_too_many_is_refused_and_the_first_goes_on(limits: RelayLimits) -> None:
    async def main() -> None:
        async with (
            relay_host(limits) as (relay, service),
            reserved_host(relay) as provider,
            caller_host() as one,
            caller_host() as other,
        ):
            first = await call(one, relay, provider.host)
            with pytest.raises(SwarmException, match="resource limit exceeded"):
                await call(other, relay, provider.host)
            assert service.n_circuits == 1
            await first.close()
            await until(lambda: not service.n_circuits, "there is room again")
            await call(other, relay, provider.host)

    run_trio(main)


@contextlib.asynccontextmanager
async def raw_circuit(limits: RelayLimits) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A circuit whose ends the test holds: the caller's stream, the reserved peer's, and the relay."""
    async with relay_host(limits) as (relay, service), listening_host() as peer, dialling_host() as caller:
        ends: list[Any] = []
        over = trio.Event()

        async def take(stream: Any) -> None:
            await messages.read_stop(stream)
            await messages.write(stream, messages.stop_status(Status.OK))
            ends.append(stream)
            await over.wait()

        peer.set_stream_handler(STOP, take)
        request = encode_varint_prefixed(messages.reserve_request().SerializeToString())
        assert await ask(peer, await connect(peer, relay), request) == Status.OK
        near = await open_stream_on(caller, await connect(caller, relay), HOP)
        await messages.write(near, messages.connect_request(peer.get_id()))
        assert messages.status_in(await messages.read_hop(near)) == Status.OK
        yield near, ends[0], service
        over.set()


async def sent_until_stuck(stream: Any, n_bytes: int) -> int:
    """How much of so many bytes goes out before the window stays closed for a second."""
    sent = 0
    while sent < n_bytes:
        with trio.move_on_after(1.0) as patience:
            await stream.muxed_stream.write(bytes(8 * 1024))
        if patience.cancelled_caught:
            break
        sent += 8 * 1024
    return sent


def test_an_end_that_takes_nothing_stops_the_other_end() -> None:
    """The relay keeps its window and no more; what was sent beyond it waits with the sender."""

    async def main() -> None:
        async with raw_circuit(RelayLimits(window_bytes=256 * 1024)) as (near, far, service):
            sent = await sent_until_stuck(near, 4 * 1024 * 1024)
            assert 256 * 1024 <= sent <= 3 * 256 * 1024
            await far.write(b"the other way is open")  # nothing holds up the other direction
            assert await near.read(21) == b"the other way is open"
            assert service.n_circuits == 1
            got = 0
            with trio.fail_after(10):
                while got < sent:
                    got += len(await far.read(65536))
            assert got == sent
            assert await sent_until_stuck(near, 128 * 1024) == 128 * 1024

    run_trio(main)


def test_either_end_may_end_before_the_other() -> None:
    async def main() -> None:
        async with raw_circuit(RelayLimits()) as (near, far, service):
            await near.write(b"last words")
            await near.close()
            assert await far.read(10) == b"last words"
            with pytest.raises(EOFError):
                await far.read(1)
            await far.write(b"and an answer")
            assert await near.read(13) == b"and an answer"
            assert service.n_circuits == 1
            await far.close()
            await until(lambda: service.n_circuits == 0, "both have ended")

    run_trio(main)


@pytest.mark.parametrize("which", [0, 1])
def test_an_end_that_is_cut_cuts_the_other(which: int) -> None:
    async def main() -> None:
        async with raw_circuit(RelayLimits()) as (*ends, service):
            await reset_stream(ends[which])
            with pytest.raises(IOException), trio.fail_after(20):
                await ends[1 - which].read(1)
            await until(lambda: service.n_circuits == 0, "the circuit is over")

    run_trio(main)


def test_an_end_that_refuses_or_says_nothing_gives_no_circuit() -> None:
    async def main() -> None:
        limits = RelayLimits(answer_s=0.5)
        async with relay_host(limits) as (relay, service), listening_host() as peer, caller_host() as caller:
            said: list[Any] = []

            async def answer(stream: Any) -> None:
                await messages.read_stop(stream)
                if said:
                    await messages.write(stream, said[0])
                await trio.sleep(3)

            peer.set_stream_handler(STOP, answer)
            request = encode_varint_prefixed(messages.reserve_request().SerializeToString())
            assert await ask(peer, await connect(peer, relay), request) == Status.OK
            connection = await connect(caller, relay)
            request = encode_varint_prefixed(messages.connect_request(peer.get_id()).SerializeToString())
            for word in (
                None,
                messages.stop_status(Status.PERMISSION_DENIED),
                messages.stop_request(peer.get_id(), limits),
            ):
                said[:] = [word] if word is not None else []
                assert await ask(caller, connection, request) == Status.CONNECTION_FAILED
                assert service.n_circuits == 0

    run_trio(main)
