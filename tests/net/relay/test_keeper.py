"""Reservations are kept: at two relays, renewed, replaced when one is lost, given up when none is wanted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from multiaddr import Multiaddr

from p2pgrid.net.host import open_host
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.relay import keeper as keeper_module
from p2pgrid.net.relay.flag import Flag
from p2pgrid.net.relay.hop import Relay
from p2pgrid.net.relay.keeper import ReservationKeeper
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.messages import HOP
from p2pgrid.net.relay.part import RelayPart
from p2pgrid.net.relay.stop import CircuitListener
from p2pgrid.net.relay.use import NO_RELAY, Mode, RelayUse, parse_relay_use
from tests.net.relay.rigs import call, caller_host, relay_host
from tests.net.trio_hosts import LOOPBACK, contact, dialling_host, listening_host, new_key, run_trio, until


class Kept:
    """A host whose reservations are kept, at relays that the test names."""

    def __init__(self, host: BasicHost, relays: Sequence[BasicHost]) -> None:
        self.host = host
        self.looks = self.changes = 0
        self._relays = [contact(relay) for relay in relays]
        self.keeper = ReservationKeeper(host, self._find, self._changed, first_pause_s=0.05)
        CircuitListener(host, self.keeper.circuit_of)

    async def _find(self) -> list[Contact]:
        self.looks += 1
        return self._relays

    def _changed(self) -> None:
        self.changes += 1


@contextlib.asynccontextmanager
async def kept(*relays: BasicHost) -> AsyncIterator[Kept]:
    async with listening_host() as host, trio.open_nursery() as nursery:
        found = Kept(host, relays)
        found.keeper.wanted.set(True)
        nursery.start_soon(found.keeper.run)
        yield found
        nursery.cancel_scope.cancel()


def test_two_relays_are_held_and_one_that_dies_is_replaced() -> None:
    async def main() -> None:
        async with (
            relay_host() as (one, _),
            relay_host() as (two, _),
            relay_host() as (three, _),
            kept(one, two, three) as ours,
            caller_host() as client,
        ):
            await ours.keeper.settled.wait()
            assert set(ours.keeper.relays) == {str(one.get_id()), str(two.get_id())}
            assert len(ours.keeper.circuits) == 2
            await call(client, one, ours.host)
            one.remove_stream_handler(HOP)
            await one.get_network().close_all()
            await until(
                lambda: set(ours.keeper.relays) == {str(two.get_id()), str(three.get_id())}, "the third takes its place"
            )
            await call(client, three, ours.host)

    run_trio(main)


def test_a_reservation_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "LONGEST_RENEWAL_S", 0.2)

    async def main() -> None:
        async with relay_host() as (relay, service), kept(relay) as ours:
            asked: list[float] = []
            real = service._book.reserve

            def reserve(peer: str, ip: str, now_s: float) -> None:
                asked.append(now_s)
                real(peer, ip, now_s)

            service._book.reserve = reserve  # type: ignore[method-assign]
            await until(lambda: len(asked) >= 4, "it is renewed again and again")
            assert ours.changes == 1
            assert service.n_reservations == 1

    run_trio(main)


def test_relays_that_refuse_are_passed_over_and_not_pressed() -> None:
    async def main() -> None:
        async with (
            relay_host(allow=lambda _: False) as (unwilling, _),
            listening_host() as no_relay,
            dialling_host() as nowhere,
            relay_host() as (good, _),
        ):
            asked: list[Any] = []
            real = unwilling.multiselect.handlers[HOP]

            async def count(stream: Any) -> None:
                asked.append(stream)
                await real(stream)

            unwilling.set_stream_handler(HOP, count)
            began = trio.current_time()
            async with kept(unwilling, no_relay, nowhere, good) as ours:
                await until(lambda: ours.keeper.relays == [str(good.get_id())], "the good one is found")
                await trio.sleep(1.0)
                # After 40 to 50 ms, then twice as long each time.
                assert len(asked) <= 2 + math.log2(1 + (trio.current_time() - began) / 0.04)
                assert ours.keeper.settled.is_set()

    run_trio(main)


def test_what_is_wanted_no_more_is_given_up_and_who_learnt_of_it_may_still_call() -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), kept(relay) as ours, caller_host() as client:
            await until(lambda: ours.keeper.circuits, "it is held")
            ours.keeper.wanted.set(False)
            await until(lambda: not ours.keeper.circuits, "it is given up")
            assert ours.changes == 2
            await call(client, relay, ours.host)
            looks = ours.looks
            await trio.sleep(0.3)
            assert ours.looks == looks
            ours.keeper.wanted.set(True)
            await until(lambda: ours.keeper.circuits, "it is held again")

    run_trio(main)


def test_a_relay_that_holds_no_reservation_of_ours_may_not_call() -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), kept(relay) as ours, caller_host() as client:
            await until(lambda: ours.keeper.circuits, "it is held")
            ours.keeper._in_force.clear()
            with pytest.raises(SwarmException, match="connection failed"):
                await call(client, relay, ours.host)

    run_trio(main)


PRIVATE, PUBLIC, BY_NAME = "/ip4/10.1.2.3/tcp/4802", "/ip4/8.8.8.8/tcp/4802", "/dns4/node.example/tcp/4802"
LISTED = parse_relay_use([f"/ip4/192.0.2.7/tcp/4803/p2p/{new_key().public_key.peer_id}"])
AUTO = RelayUse(Mode.AUTO)


@pytest.mark.parametrize(
    ("use", "listen", "told", "reachable", "wanted"),
    [
        (AUTO, "/ip4/0.0.0.0/tcp/0", [PRIVATE], None, True),
        (AUTO, "/ip4/0.0.0.0/tcp/0", [PRIVATE, PUBLIC], None, False),
        (AUTO, "/ip4/0.0.0.0/tcp/0", [BY_NAME], None, False),
        (AUTO, "/ip4/0.0.0.0/tcp/0", [PRIVATE], True, False),
        (AUTO, "/ip4/0.0.0.0/tcp/0", [PUBLIC], False, True),
        (AUTO, "/ip4/127.0.0.1/tcp/0", [], None, False),  # this machine alone, on purpose
        (AUTO, "/ip4/127.0.0.1/tcp/0", [], False, True),
        (LISTED, "/ip4/127.0.0.1/tcp/0", [], None, True),
        (LISTED, "/ip4/0.0.0.0/tcp/0", [PUBLIC], True, True),
        (NO_RELAY, "/ip4/0.0.0.0/tcp/0", [PRIVATE], False, False),
    ],
)
def test_when_relays_are_used(
    use: RelayUse, listen: str, told: list[str], reachable: bool | None, wanted: bool
) -> None:
    async def nobody(_: float) -> list[PeerAddress]:
        return []

    async def main() -> None:
        announce = [Multiaddr(text) for text in told]
        async with open_host(new_key(), [Multiaddr(listen)], announce=announce) as host:
            part = RelayPart(host, use, None, seeds=(), look_up=nobody, on_change=lambda: None)
            part.decide(reachable)
            assert part.keeper.wanted.value is wanted

    run_trio(main)


def test_a_flag_wakes_who_waits_for_its_value() -> None:
    async def main() -> None:
        flag, woken = Flag(), list[str]()

        async def wait(value: bool) -> None:
            await flag.wait(value)
            woken.append(str(value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, True)
            await trio.testing.wait_all_tasks_blocked()
            flag.set(False)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            flag.set(True)
        assert woken == ["True"]

    run_trio(main)


def test_a_relay_forgets_nobody_for_asking_twice() -> None:
    async def main() -> None:
        async with listening_host() as host:
            service = Relay(host, RelayLimits(reservations=1))
            async with kept(host) as ours:
                await until(lambda: ours.keeper.circuits, "it is held")
                assert service.n_reservations == 1
                assert [str(address).split("/p2p/")[0] for address in ours.keeper.circuits] == [
                    str(LOOPBACK).replace("/0", f"/{contact(host).addresses[0].value_for_protocol('tcp')}")
                ]

    run_trio(main)
