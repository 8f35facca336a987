"""Stolen, replayed, reflected and passed-on proofs; malformed ones; and ways around, through relays."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.stream_muxer.exceptions import MuxedStreamError

from p2pgrid.errors import Refused, RemoteError
from p2pgrid.net.host import negotiate_on, open_stream_on
from p2pgrid.net.members.exchange import PROTOCOL
from p2pgrid.net.relay.dialler import CircuitDialler
from p2pgrid.net.relay.hop import Relay
from p2pgrid.net.relay.kind import is_relayed
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.reserving import reserve
from p2pgrid.net.relay.stop import CircuitListener
from p2pgrid.proto.credentials import Credential, Credentials
from tests.net.members.rigs import Member, force, member, talk
from tests.net.relay.rigs import circuit_through, relay_host
from tests.net.trio_hosts import ECHO, connect, dialling_host, listening_host, run_trio

BROKEN = (IOException, MuxedStreamError, StreamFailure)


async def read_exactly(stream: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.read(size - len(data))
    return bytes(data)


async def read_message(stream: Any) -> bytes:
    return await read_exactly(stream, int.from_bytes(await read_exactly(stream, 4)))


def message(payload: bytes) -> bytes:
    return len(payload).to_bytes(4) + payload


async def is_let_in(outside: Any, inside: Member) -> bool:
    """Whether what the outsider has shown so far opens anything."""
    try:
        return await force(outside, inside.host) == b"hello"
    except StreamFailure:
        return False


async def show(outside: Any, inside: Member, payload: bytes, nonce: list[bytes] | None = None) -> bytes:
    """Call a member and send it this as credentials; what it answers, empty where it resets."""
    try:
        stream = await negotiate_on(outside, await connect(outside, inside.host), PROTOCOL)
        shown = await read_exactly(stream, 32)
        if nonce is not None:
            nonce.append(shown)
        await stream.write(payload)
        return await read_message(stream)
    except BROKEN:
        return b""


@asynccontextmanager
async def tapped(victim: Member, payloads: list[bytes], nonce: bytes | None = None) -> AsyncIterator[Any]:
    """An outsider that a member takes for another and calls: it keeps what it is shown."""
    async with listening_host() as spy:

        async def take(stream: Any) -> None:
            await stream.write(nonce or bytes(32))
            payloads.append(await read_message(stream))
            await stream.write(message(payloads[-1]))
            await stream.close()

        spy.set_stream_handler(PROTOCOL, take)
        with pytest.raises(Refused):
            await talk(victim.host, spy)
        yield spy


def test_a_proof_that_was_shown_to_one_is_worth_nothing_to_another() -> None:
    """A member calls an outsider, which replays what it is shown to another member, from wherever it likes."""

    async def main() -> None:
        payloads: list[bytes] = []
        async with member(listens=False) as victim, member() as inside, tapped(victim, payloads) as spy:
            assert len(payloads) == 1 and len(payloads[0]) > 64
            answer = await show(spy, inside, message(payloads[0]))
            assert answer == message(Credentials(nonce=b"", credentials=()).to_bytes())[4:]
            assert not await is_let_in(spy, inside)

    run_trio(main)


def test_an_outsider_between_two_members_gets_nothing() -> None:
    """It calls one, hands its nonce to the other, who calls it, and passes the proof on while it is fresh."""

    async def main() -> None:
        async with member(listens=False) as victim, member() as inside, listening_host() as between:
            passed: list[bytes] = []

            async def take(stream: Any) -> None:
                onward = await negotiate_on(between, await connect(between, inside.host), PROTOCOL)
                await stream.write(await read_exactly(onward, 32))
                credentials = await read_message(stream)
                await onward.write(message(credentials))
                passed.append(await read_message(onward))
                await stream.write(message(passed[0]))
                await stream.close()

            between.set_stream_handler(PROTOCOL, take)
            with pytest.raises(Refused):
                await talk(victim.host, between)
            assert passed == [Credentials(nonce=b"", credentials=()).to_bytes()]
            assert not await is_let_in(between, inside)
            assert not victim.sees(between)

    run_trio(main)


def test_a_members_own_credentials_sent_back_prove_nothing() -> None:
    async def main() -> None:
        payloads: list[bytes] = []
        async with member(listens=False) as victim, listening_host() as mirror:

            async def take(stream: Any) -> None:
                await stream.write(bytes(32))
                credentials = await read_message(stream)
                payloads.append(credentials)
                # Without the nonce, so that it is in the form of an answer.
                told = Credentials(nonce=b"", credentials=_credentials_in(credentials)).to_bytes()
                await stream.write(message(told))
                await stream.close()

            mirror.set_stream_handler(PROTOCOL, take)
            with pytest.raises(Refused):
                await talk(victim.host, mirror)
            assert payloads and not victim.sees(mirror)

    run_trio(main)


def _credentials_in(raw: bytes) -> tuple[Credential, ...]:
    import msgspec

    return msgspec.msgpack.decode(raw, type=Credentials).credentials


def test_the_same_words_on_a_second_connection_are_worth_nothing() -> None:
    """What a member itself said: the nonce is another one each time."""

    async def main() -> None:
        async with member() as inside, member(listens=False) as friend:
            said: list[bytes] = []
            connection = await connect(friend.host, inside.host)
            stream = await negotiate_on(friend.host, connection, PROTOCOL)
            nonces = [await read_exactly(stream, 32)]
            await stream.reset()
            assert await talk(friend.host, inside.host) == b"hello"
            await connection.close()

            tap: list[bytes] = []
            async with tapped(friend, tap, nonce=nonces[0]):
                said = tap
            answer = await show(friend.host, inside, message(said[0]), nonces)
            assert nonces[0] != nonces[1]
            assert answer == Credentials(nonce=b"", credentials=()).to_bytes()
            assert not inside.sees(friend.host)

    run_trio(main)


NO_CREDENTIALS = Credentials(nonce=bytes(32), credentials=()).to_bytes()
MALFORMED = {
    "an empty message": message(b""),
    "no MessagePack": message(b"\xc1" * 40),
    "the called's form": message(Credentials(nonce=b"", credentials=()).to_bytes()),
    "a long length and nothing": (2**32 - 1).to_bytes(4),
    "a length of 16385": (16_385).to_bytes(4) + bytes(16_385),
    "17 credentials": message(
        b"\x92\xc4\x20" + bytes(32) + b"\xdc\x00\x11" + b"\x92\xc4\x20" + bytes(32) + b"\xc4\x00"
    ),
    "a byte behind": message(NO_CREDENTIALS + b"\0"),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_credentials_are_cut_and_the_host_lives(how: str) -> None:
    async def main() -> None:
        async with member() as inside, dialling_host() as outside, member(listens=False) as friend:
            assert await show(outside, inside, MALFORMED[how]) == b""
            assert not await is_let_in(outside, inside)
            assert await talk(friend.host, inside.host) == b"hello"

    run_trio(main)


ANSWERS = {
    "nothing, and the end": b"",
    "half a nonce": bytes(16),
    "a nonce, and too much": bytes(32) + (2**31).to_bytes(4),
    "a nonce, and no credentials": bytes(32) + message(b"\x80"),
    "the caller's form": bytes(32) + message(NO_CREDENTIALS),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_malformed_answers_prove_nothing(how: str) -> None:
    async def main() -> None:
        async with member(listens=False) as inside, listening_host() as outside:

            async def take(stream: Any) -> None:
                await stream.write(ANSWERS[how])
                await stream.close()

            outside.set_stream_handler(PROTOCOL, take)
            with pytest.raises(Refused) as caught:
                await talk(inside.host, outside)
            assert caught.value.code == "not-a-member"

    run_trio(main)


def test_who_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pgrid.net.members.exchange.EXCHANGE_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with member() as inside, listening_host() as silent, dialling_host() as idler:

            async def take(stream: Any) -> None:
                await trio.sleep_forever()

            silent.set_stream_handler(PROTOCOL, take)
            with pytest.raises(Refused, match=r"did not answer on /p2pgrid/member/1 in 0\.5 s"):
                await talk(inside.host, silent)
            stream = await negotiate_on(idler, await connect(idler, inside.host), PROTOCOL)
            assert len(await read_exactly(stream, 32)) == 32
            with pytest.raises(BROKEN):
                await read_exactly(stream, 1)

    run_trio(main)


# -- around the gate, through relays --------------------------------------------------------------------------------


async def reached_through(inside: Member, relay: Any) -> None:
    """Have the member be reached through the relay from now on."""
    connection = await inside.host.get_network().connect_to(relay.get_id(), relay.get_transport_addrs())
    reservation = await reserve(inside.host, connection, time.time())
    circuits = {reservation.relay: reservation.circuits[0]}
    CircuitListener(inside.host, circuits.get)


async def over_circuit(a: Any, relay: Any, b: Member) -> Any:
    a.get_network().circuits = CircuitDialler(a)
    return await a.get_network().connect_to(b.host.get_id(), [circuit_through(relay)])


def test_a_circuit_leads_to_the_gate_and_no_further() -> None:
    """Over a relay that is no member: it carries the connection for whoever asks; what is at its end is closed."""

    async def main() -> None:
        async with (
            relay_host() as (relay, service),
            member() as inside,
            member(listens=False) as friend,
            dialling_host() as outside,
        ):
            await reached_through(inside, relay)
            connection = await over_circuit(outside, relay, inside)
            assert is_relayed(connection)
            with pytest.raises(StreamFailure):
                await negotiate_on(outside, connection, ECHO)

            connection = await over_circuit(friend.host, relay, inside)
            assert is_relayed(connection)
            stream = await open_stream_on(friend.host, connection, ECHO)
            await stream.write(b"hello")
            assert await read_exactly(stream, 5) == b"hello"
            assert service.n_circuits == 2

    run_trio(main)


def test_a_member_relays_for_members_alone() -> None:
    async def main() -> None:
        async with member() as relaying, member() as inside, member() as friend, dialling_host() as outside:
            service = Relay(relaying.host, RelayLimits())
            await reached_through(inside, relaying.host)
            assert service.n_reservations == 1
            with pytest.raises(SwarmException, match="does not relay"):
                await over_circuit(outside, relaying.host, inside)
            connection = await connect(outside, relaying.host)
            with pytest.raises(RemoteError):
                await reserve(outside, connection, time.time())
            assert service.n_reservations == 1
            assert is_relayed(await over_circuit(friend.host, relaying.host, inside))

    run_trio(main)
