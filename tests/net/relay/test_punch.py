"""Two peers on a relayed connection agree where and when to meet; what a hostile one says leads nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.exceptions import IOException
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation, Unreachable
from p2pgrid.net.host import open_stream_on
from p2pgrid.net.punch_plan import PunchPlan
from p2pgrid.net.relay import punch
from p2pgrid.net.relay.observed import observed_address
from p2pgrid.net.relay.punch import PUNCH, PunchListener, agree
from p2pgrid.net.tcp import local_address
from tests.net.relay.rigs import Reserved, call, caller_host, relay_host, reserved_host
from tests.net.trio_hosts import connect, run_trio, until


class Meeting:
    """A relay, a provider behind it that punches, and a client that came through it."""

    def __init__(self, relay: BasicHost, provider: Reserved, client: BasicHost) -> None:
        self.relay, self.provider, self.client = relay, provider, client
        self.begun: list[tuple[PunchPlan, str]] = []
        PunchListener(provider.host, lambda plan, peer: self.begun.append((plan, peer)))
        self.connection: Any = None

    def port_at_relay(self, host: BasicHost) -> tuple[str, int]:
        [connection] = host.get_network().get_connections(self.relay.get_id())
        found = local_address(connection)
        assert found is not None
        return found

    async def stream(self) -> Any:
        return await open_stream_on(self.client, self.connection, PUNCH)


@asynccontextmanager
async def meeting() -> AsyncIterator[Meeting]:
    async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as client:
        met = Meeting(relay, provider, client)
        met.connection = await call(client, relay, provider.host)
        yield met


def test_both_learn_the_ports_that_the_relay_sees() -> None:
    async def main() -> None:
        async with meeting() as m:
            plan = await agree(m.client, m.provider.host.get_id())
            await until(lambda: m.begun, "the provider begins too")
            here, there = m.port_at_relay(m.client), m.port_at_relay(m.provider.host)
            assert plan == PunchPlan(here, (there,))
            assert m.begun == [(PunchPlan(there, (here,)), str(m.client.get_id()))]

    run_trio(main)


def test_who_has_no_relayed_connection_agrees_on_nothing() -> None:
    async def main() -> None:
        async with meeting() as m, caller_host() as direct:
            connection = await connect(direct, m.provider.host)
            with pytest.raises(Unreachable, match="no relayed connection"):
                await agree(direct, m.provider.host.get_id())
            with pytest.raises((IOException, StreamFailure)):
                stream = await open_stream_on(direct, connection, PUNCH)
                await stream.read(1)
            assert m.begun == []

    run_trio(main)


def test_a_peer_that_punches_no_holes_says_so() -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as client:
            await call(client, relay, provider.host)
            with pytest.raises(Unreachable, match="punches no holes"):
                await agree(client, provider.host.get_id())

    run_trio(main)


def said(kind: Any, *addresses: str) -> bytes:
    message: Any = HolePunch(type=kind)
    message.ObsAddrs.extend(Multiaddr(one).to_bytes() for one in addresses)
    return bytes(encode_varint_prefixed(message.SerializeToString()))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 12,
        encode_varint_prefixed(b"\xff\xff"),
        encode_varint_prefixed(b""),
        said(HolePunch.SYNC),
        said(HolePunch.CONNECT),
        said(HolePunch.CONNECT, "/ip4/10.1.2.3/tcp/22", "/ip4/8.8.8.8/udp/1/quic-v1", "/dns4/a.example/tcp/1"),
        said(HolePunch.CONNECT, *(["/ip4/127.0.0.1/tcp/9"] * 500)),
    ],
)
def test_what_leads_nowhere_is_dropped(data: bytes) -> None:
    async def main() -> None:
        async with meeting() as m:
            stream = await m.stream()
            await stream.write(data)
            with pytest.raises(IOException), trio.fail_after(8):
                await stream.read(1)
            assert m.begun == []
            await agree(m.client, m.provider.host.get_id())  # and the next one is heard

    run_trio(main)


def test_a_peer_asks_for_one_hole_at_a_time_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punch, "ANSWER_S", 2.0)

    async def main() -> None:
        async with meeting() as m:
            first = await m.stream()
            await first.write(b"\x01")
            with pytest.raises((IOException, StreamFailure)), trio.fail_after(1.8):  # at once, and not with the first
                second = await m.stream()
                await second.read(1)
            with pytest.raises(IOException), trio.fail_after(20):
                await first.read(1)
            third = await m.stream()
            await third.write(said(HolePunch.CONNECT, "/ip4/127.0.0.1/tcp/9"))
            with trio.fail_after(20):
                assert await third.read(1)
            assert m.begun == []  # SYNC has not come

    run_trio(main)


@pytest.mark.parametrize("answer", [b"", b"\xff" * 20, said(HolePunch.SYNC), said(HolePunch.CONNECT)])
def test_a_provider_that_answers_badly_gets_no_client(answer: bytes) -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), reserved_host(relay) as provider, caller_host() as client:

            async def lie(stream: Any) -> None:
                await stream.write(answer)
                await stream.close()

            provider.host.set_stream_handler(PUNCH, lie)
            await call(client, relay, provider.host)
            with pytest.raises((Unreachable, ProtocolViolation)):
                await agree(client, provider.host.get_id())

    run_trio(main)


@pytest.mark.parametrize("told", [b"", b"\xff\xff", Multiaddr("/dns4/a.example/tcp/1").to_bytes(), b"\x00" * 3000])
def test_a_relay_that_does_not_say_how_it_sees_us_is_of_no_help(told: bytes) -> None:
    async def main() -> None:
        async with relay_host() as (relay, _), caller_host() as client:
            connection = await connect(client, relay)
            assert await observed_address(client, connection) == local_address(connection)

            async def lie(stream: Any) -> None:
                await stream.write(encode_varint_prefixed(Identify(observed_addr=told).SerializeToString()))
                await stream.close()

            relay.set_stream_handler("/ipfs/id/1.0.0", lie)
            with pytest.raises(Unreachable):
                await observed_address(client, connection)

    run_trio(main)
