"""A relay that lies: what it says is judged, and what it may lead to is proven by others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation, Unreachable
from p2pgrid.net.host import open_stream_on
from p2pgrid.net.relay import messages
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.messages import HOP, STOP
from p2pgrid.net.relay.pace import Bucket
from p2pgrid.net.relay.pump import Pump
from p2pgrid.net.relay.reserving import reserve
from p2pgrid.net.relay.status import Status
from p2pgrid.net.relay.voucher import check_voucher, seal_voucher
from p2pgrid.net.session_stream import SessionStream
from tests.net.relay.rigs import call, caller_host, relay_host, reserved_host
from tests.net.trio_hosts import connect, contact, dialling_host, listening_host, run_trio, until

LIMITS = RelayLimits()
STRANGER = create_new_key_pair(b"s" * 32)
STRANGER_ID = ID.from_pubkey(STRANGER.public_key)


def answer(host: BasicHost, peer: ID, *, ends_in_s: float = 3600, **lies: Any) -> Any:
    ends = int(time.time() + ends_in_s)
    voucher = seal_voucher(host.get_private_key(), host.get_id(), peer, ends)
    return messages.reservation_given(
        lies.get("ends", ends),
        lies.get("addresses", [address.to_bytes() for address in host.get_addrs()]),
        lies.get("voucher", voucher),
        LIMITS,
    )


LIES: dict[str, tuple[Callable[[BasicHost, ID], Any], str]] = {
    "it is over already": (lambda host, peer: answer(host, peer, ends_in_s=-5), "lasts"),
    "it lasts but a moment": (lambda host, peer: answer(host, peer, ends_in_s=5), "lasts"),
    "another end than was signed": (lambda host, peer: answer(host, peer, ends=int(time.time()) + 9999), "signed"),
    "a stranger's voucher": (
        lambda host, peer: answer(
            host, peer, voucher=seal_voucher(STRANGER.private_key, host.get_id(), peer, int(time.time()) + 3600)
        ),
        "voucher is not good",
    ),
    "a voucher for another": (
        lambda host, peer: answer(
            host,
            peer,
            voucher=seal_voucher(host.get_private_key(), host.get_id(), STRANGER_ID, int(time.time()) + 3600),
        ),
        "names other peers",
    ),
    "no voucher but noise": (lambda host, peer: answer(host, peer, voucher=b"\x0a\x02\x08\x09" * 8), "not good"),
    "a voucher without end": (lambda host, peer: answer(host, peer, voucher=b"x" * 2000), "2000 bytes"),
    "a message of another kind": (lambda host, peer: messages.reserve_request(), "STATUS"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_reservation_that_cannot_be_true_is_none(name: str) -> None:
    async def main() -> None:
        lie, why = LIES[name]
        async with listening_host() as relay, dialling_host() as peer:

            async def give(stream: Any) -> None:
                await messages.read_hop(stream)
                await messages.write(stream, lie(relay, peer.get_id()))

            relay.set_stream_handler(HOP, give)
            with pytest.raises(ProtocolViolation, match=why):
                await reserve(peer, await connect(peer, relay), time.time())

    run_trio(main)


def test_of_a_relays_own_addresses_few_are_believed_and_the_one_that_was_dialled_first() -> None:
    async def main() -> None:
        async with listening_host() as relay, dialling_host() as peer:
            told = [f"/ip4/192.0.2.{n}/tcp/1/p2p/{relay.get_id()}" for n in range(1, 200)]
            others = [f"/ip4/192.0.2.9/tcp/1/p2p/{STRANGER_ID}", f"/ip4/192.0.2.9/tcp/1/p2p/{STRANGER_ID}/p2p-circuit"]

            async def give(stream: Any) -> None:
                await messages.read_hop(stream)
                addresses = [Multiaddr(text).to_bytes() for text in (others + told)[:50]]
                await messages.write(stream, answer(relay, peer.get_id(), addresses=[b"junk", *addresses]))

            relay.set_stream_handler(HOP, give)
            reservation = await reserve(peer, await connect(peer, relay), time.time())
            found = [(one.relay, str(one.at)) for one in reservation.circuits]
            where = str(contact(relay).addresses[0])
            assert found == [(str(relay.get_id()), where), (str(relay.get_id()), "/ip4/192.0.2.1/tcp/1")]

    run_trio(main)


def test_a_relay_that_falls_silent_is_given_up() -> None:
    async def main() -> None:
        async with listening_host() as relay, dialling_host() as peer:

            async def hang_up(stream: Any) -> None:
                await stream.reset()

            relay.set_stream_handler(HOP, hang_up)
            with pytest.raises((Unreachable, ProtocolViolation)):
                await reserve(peer, await connect(peer, relay), time.time())

    run_trio(main)


def test_a_relay_that_leads_to_somebody_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It joins the caller to a friend of its own, who plays the peer that was asked for: Noise shows another key."""

    async def main() -> None:
        async with (
            relay_host() as (relay, _),
            reserved_host(relay) as impostor,
            reserved_host() as wanted,
            caller_host() as caller,
        ):
            await connect(caller, relay)
            # What reaches the relay names the impostor, as if the relay itself had put that name there.
            to_impostor = messages.connect_request(impostor.host.get_id())
            monkeypatch.setattr(messages, "connect_request", lambda _: to_impostor)
            with pytest.raises(SwarmException):
                await call(caller, relay, wanted.host)
            assert not caller.get_network().get_connections(wanted.host.get_id())
            assert not caller.get_network().get_connections(impostor.host.get_id())

    run_trio(main)


def test_a_relay_that_names_another_caller_loses_its_circuit() -> None:
    """STOP says that a stranger calls, and Noise proves the real caller: nobody is passed off for somebody else."""

    async def main() -> None:
        async with listening_host() as relay, reserved_host() as provider, caller_host() as caller:
            # The relay's half by hand: a reservation is given, and the caller's stream is joined to a STOP stream.
            relay_connection = await connect(provider.host, relay)

            async def give(stream: Any) -> None:
                await messages.read_hop(stream)
                await messages.write(stream, answer(relay, provider.host.get_id()))

            relay.set_stream_handler(HOP, give)
            provider.reservations[relay.get_id()] = await reserve(provider.host, relay_connection, time.time())

            async def lie(stream: Any) -> None:
                await messages.read_hop(stream)
                [there] = relay.get_network().get_connections(provider.host.get_id())
                far = await open_stream_on(relay, there, STOP)
                await messages.write(far, messages.stop_request(STRANGER_ID, LIMITS))
                assert messages.status_in(await messages.read_stop(far)) == Status.OK
                await messages.write(stream, messages.hop_status(Status.OK))
                await Pump(SessionStream(stream), SessionStream(far), LIMITS, Bucket(10**6, 0.0)).run()

            relay.set_stream_handler(HOP, lie)
            try:
                connection = await call(caller, relay, provider.host)
            except SwarmException:
                pass  # it was cut even before the caller was done
            else:
                await until(lambda: connection.is_closed, "the provider cuts it")
            network = provider.host.get_network()
            await until(lambda: not network.get_connections(caller.get_id()), "nothing is left of it")

    run_trio(main)


def test_a_voucher_says_who_signed_it_for_whom_until_when() -> None:
    keys, peer = create_new_key_pair(b"r" * 32), STRANGER_ID
    relay = ID.from_pubkey(keys.public_key)
    raw = seal_voucher(keys.private_key, relay, peer, 1_900_000_000)
    assert check_voucher(raw, relay, peer) == 1_900_000_000
    for at in range(0, len(raw), 3):
        for changed in (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], raw[:at]):
            if changed != raw:
                with pytest.raises(ProtocolViolation):
                    check_voucher(changed, relay, peer)


def test_circuits_from_one_caller_are_capped_at_the_far_end() -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as caller:
            first = await call(caller, relay, provider.host)
            swarm = caller.get_network()
            circuit = provider.reservations[relay.get_id()].circuits[0]
            for _ in range(3):
                await swarm.circuits.dial(provider.host.get_id(), circuit)
            with pytest.raises(SwarmException, match="connection failed"):
                await swarm.circuits.dial(provider.host.get_id(), circuit)
            assert not first.is_closed

    run_trio(main)
