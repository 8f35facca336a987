"""A host against peers that ask for too much, too often: what they get, and what others get meanwhile."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING_ID
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.io.exceptions import IOException
from libp2p.io.utils import read_exactly
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamError
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2pgrid.net import doors as doors_module
from p2pgrid.net import ping as ping_module
from p2pgrid.net.dht import Dht
from p2pgrid.net.doors import ALLOWANCES, allowance_of
from p2pgrid.net.host import HostLimits
from p2pgrid.net.identify_intake import MAX_ADDRESSES, MAX_PROTOCOLS
from p2pgrid.net.log_exchange import ask_log, serve_log
from tests.net.raw_peer import ACK, DATA, PING, RST, SYN, WINDOW_UPDATE, RawPeer, frame, open_tcp, raw_peer
from tests.net.trio_hosts import ECHO, connect, contact, dialling_host, echo, listening_host, run_trio, until

HOSTILE = "127.0.0.66"
SECONDS = 1.5


async def answers(peer: RawPeer, wanted: Any, seconds: float = SECONDS) -> int:
    """How many frames come within so many seconds that `wanted(kind, flags)` is true of."""
    n = 0
    with trio.move_on_after(seconds):
        while True:
            kind, flags, *_ = await peer.read_frame()
            n += bool(wanted(kind, flags))
    return n


def elapsed_s(began: float) -> float:
    """Since the test began. The machine may be busy, and rates go on meanwhile."""
    return trio.current_time() - began


async def flood(peer: RawPeer, data: bytes) -> None:
    while True:
        await peer.send(data)


@pytest.mark.parametrize("messages_each", [0, 1, 12])
def test_frames_are_dealt_with_no_faster_than_the_rate(messages_each: int) -> None:
    """Pings of yamux: many in one message of Noise, one in each, and one in twelve messages of a byte."""

    async def main() -> None:
        began = trio.current_time()
        limits = HostLimits(frames_burst=300, frames_per_s=200)
        async with listening_host(limits) as host, dialling_host() as honest, raw_peer(host, HOSTILE) as hostile:
            await connect(honest, host)

            async def write() -> None:
                pings = frame(PING, SYN, 0, 7) * (1 if messages_each else 2000)
                while True:
                    for at in range(0, len(pings), size := len(pings) // (messages_each or 1)):
                        await hostile.send(pings[at : at + size])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(until_idle, honest, host)
                n = await answers(hostile, lambda kind, flags: kind == PING and flags == ACK)
                nursery.cancel_scope.cancel()
            units_each = 1 + messages_each
            assert 0 < n <= (300 + 200 * elapsed_s(began)) / units_each + 5

    run_trio(main)


async def until_idle(honest: Any, host: Any) -> None:
    """Echoes from another address, one after the other: each within its deadline."""
    while True:
        with trio.fail_after(20):
            await echo(honest, host)


def test_streams_are_opened_no_faster_than_the_rate() -> None:
    async def main() -> None:
        began = trio.current_time()
        limits = HostLimits(opens_burst=20, opens_per_s=10)
        async with listening_host(limits) as host, dialling_host() as honest, raw_peer(host, HOSTILE) as hostile:
            await connect(honest, host)

            async def write() -> None:
                stream = 1
                while True:
                    await hostile.send(frame(WINDOW_UPDATE, SYN, stream) + frame(WINDOW_UPDATE, RST, stream))
                    stream += 2

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(until_idle, honest, host)
                n = await answers(hostile, lambda kind, flags: kind == WINDOW_UPDATE and flags == ACK)
                nursery.cancel_scope.cancel()
            assert 0 < n <= 20 + 10 * elapsed_s(began) + 2

    run_trio(main)


def test_the_rate_is_that_of_an_address_whatever_its_connections_and_keys() -> None:
    async def main() -> None:
        began = trio.current_time()
        limits = HostLimits(frames_burst=100, frames_per_s=50)
        counts: list[int] = []

        async def one(host: Any) -> None:
            async with raw_peer(host, HOSTILE) as peer, trio.open_nursery() as nursery:
                nursery.start_soon(flood, peer, frame(PING, SYN, 0, 7) * 500)
                counts.append(await answers(peer, lambda kind, flags: kind == PING and flags == ACK))
                nursery.cancel_scope.cancel()

        async with listening_host(limits) as host, trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one, host)
        assert 0 < sum(counts) <= 100 + 50 * elapsed_s(began)

    run_trio(main)


def test_an_address_that_connects_too_often_is_turned_away() -> None:
    async def main() -> None:
        async with listening_host(HostLimits(connects_burst=3, connects_per_s=0.001)) as host:
            for _ in range(3):
                tcp = await open_tcp(host, HOSTILE)
                assert await tcp.receive_some(64), "the host greets"
                await tcp.aclose()
            tcp = await open_tcp(host, HOSTILE)
            assert await tcp.receive_some(64) == b""
            async with dialling_host() as honest:
                await echo(honest, host)

    run_trio(main)


def test_where_half_of_all_connections_are_taken_an_address_has_one_eighth() -> None:
    async def main() -> None:
        limits = HostLimits(max_connections=16, max_inbound_per_ip=16)
        async with listening_host(limits) as host:
            held = [await open_tcp(host, HOSTILE) for _ in range(8)]
            for tcp in held:
                assert await tcp.receive_some(64)
            other = [await open_tcp(host, "127.0.0.67") for _ in range(3)]
            assert [bool(await tcp.receive_some(64)) for tcp in other] == [True, True, False]
            async with dialling_host() as honest:
                await echo(honest, host)

    run_trio(main)


@pytest.mark.parametrize("said", [b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20"])
def test_a_handshake_that_drags_on_loses_its_connection(said: bytes) -> None:
    async def main() -> None:
        async with listening_host(HostLimits(handshake_s=0.5)) as host:
            tcp = await open_tcp(host, HOSTILE)
            with trio.fail_after(7):
                for byte in [said[i : i + 1] for i in range(len(said))]:
                    await tcp.send_all(byte)
                try:
                    while await tcp.receive_some(4096):
                        pass
                except trio.BrokenResourceError:
                    pass
            await until(lambda: not host.get_network()._seats.taken, "its seat is free")

    run_trio(main)


@pytest.mark.parametrize("protocol", [PING_ID, IDENTIFY_PUSH, "/p2pgrid/offer/1"])
def test_a_peer_has_so_many_streams_of_a_protocol_at_once(protocol: str) -> None:
    async def waits(stream: Any) -> None:
        await stream.read(1)

    async def main() -> None:
        most = allowance_of(protocol).per_peer
        assert most is not None
        async with listening_host() as host, dialling_host() as peer, dialling_host() as other:
            if protocol not in host.multiselect.handlers:
                host.set_stream_handler(protocol, waits)
            await connect(peer, host)
            held = [await peer.new_stream(host.get_id(), [protocol]) for _ in range(most)]
            await until(lambda: host.doors.seats[protocol].taken == most, "they are all open")
            with pytest.raises((StreamError, StreamFailure)):
                one_more = await peer.new_stream(host.get_id(), [protocol])
                assert await one_more.read(1) != b""
            await connect(other, host)
            stream = await other.new_stream(host.get_id(), [protocol])
            await until(lambda: host.doors.seats[protocol].taken == most + 1, "another peer has one")
            for one in (*held, stream):
                await one.reset()
            await until(lambda: not host.doors.seats[protocol].taken, "the seats are free")

    run_trio(main)


def test_streams_that_cost_a_disk_its_time_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doors_module.PACED, "/p2pgrid/log/1", (2.0, 1.0))

    async def main() -> None:
        began = trio.current_time()

        async def answer(request: bytes, asker: str) -> bytes:
            return request

        async with listening_host() as host, dialling_host() as peer:
            serve_log(host, answer)
            await connect(peer, host)
            n = 0
            with trio.move_on_after(SECONDS):
                while True:
                    assert await ask_log(peer, contact(host), b"question", 5) == b"question"
                    n += 1
            assert 2 <= n <= 2 + elapsed_s(began) + 1

    run_trio(main)


def test_every_handler_stands_behind_a_door() -> None:
    async def main() -> None:
        async with listening_host() as host:
            assert set(host.multiselect.handlers) == set(host.doors.seats) == {IDENTIFY, IDENTIFY_PUSH, PING_ID, ECHO}
        for allowance in ALLOWANCES.values():
            assert allowance.per_peer is not None
            assert allowance.per_peer <= allowance.per_address <= allowance.total

    run_trio(main)


def test_pings_are_answered_at_a_rate_and_nobody_is_remembered() -> None:
    async def main() -> None:
        began = trio.current_time()
        async with listening_host(HostLimits(answers_burst=5, answers_per_s=10)) as host:
            async with dialling_host() as peer:
                await connect(peer, host)
                stream = await peer.new_stream(host.get_id(), [PING_ID])
                n = 0
                with trio.move_on_after(SECONDS):
                    while True:
                        data = n.to_bytes(32)
                        await stream.write(data)
                        assert await read_exactly(stream, 32) == data
                        n += 1
                assert 5 <= n <= 5 + 10 * elapsed_s(began) + 1
            await until(lambda: not host.get_network().get_connections(), "the peer is gone")
            services = [one for one in gc.get_objects() if type(one) is PingService]
            assert not any(service._inbound_streams for service in services)

    run_trio(main)


def test_a_ping_that_stays_away_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            host.set_stream_handler(PING_ID, ping_module.answer_pings(host.doors.pace, idle_timeout_s=0.3))
            await connect(peer, host)
            stream = await peer.new_stream(host.get_id(), [PING_ID])
            await stream.write(bytes(32))
            assert await read_exactly(stream, 32) == bytes(32)
            await stream.write(bytes(7))
            with trio.fail_after(20), pytest.raises(StreamError):
                await stream.read(1)

    run_trio(main)


def test_requests_on_one_stream_of_the_dht_are_answered_at_a_rate() -> None:
    async def main() -> None:
        began = trio.current_time()
        async with listening_host(HostLimits(answers_burst=5, answers_per_s=10)) as host, dialling_host() as peer:
            Dht(host, "test", serve=True).server.start(None)
            await connect(peer, host)
            stream = await peer.new_stream(host.get_id(), ["/p2pgrid/test/kad/1.0.0"])
            question = Message(type=Message.MessageType.FIND_NODE, key=bytes(32))
            n = 0
            with trio.move_on_after(SECONDS):
                while True:
                    await stream.write(encode_varint_prefixed(question.SerializeToString()))
                    await read_varint_prefixed_bytes_limited(stream, 65_536)
                    n += 1
            assert 5 <= n <= 5 + 10 * elapsed_s(began) + 1

    run_trio(main)


@pytest.mark.parametrize(("n_bytes", "is_answered"), [(10_000, True), (20_000, False)])
def test_a_request_to_the_dht_has_a_bounded_size(n_bytes: int, is_answered: bool) -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            Dht(host, "test", serve=True).server.start(None)
            await connect(peer, host)
            stream = await peer.new_stream(host.get_id(), ["/p2pgrid/test/kad/1.0.0"])
            question = Message(type=Message.MessageType.FIND_NODE, key=bytes(32))
            question.MergeFromString(b"\x9a\x06" + encode_varint_prefixed(bytes(n_bytes)))  # a field nobody knows
            await stream.write(encode_varint_prefixed(question.SerializeToString()))
            if is_answered:
                assert await read_varint_prefixed_bytes_limited(stream, 65_536)
            else:
                with pytest.raises(StreamError):
                    await stream.read(1)

    run_trio(main)


def test_who_asks_the_dht_does_not_enter_its_table() -> None:
    """It may be a client, which answers nobody; those who answer are admitted by their answers."""

    async def main() -> None:
        async with listening_host() as host, listening_host() as peer:
            dht, store = Dht(host, "test", serve=True), host.get_peerstore()
            dht.server.start(None)
            await connect(peer, host)
            await until(lambda: store.has_peer(peer.get_id()) and store.addrs(peer.get_id()), "it is known by identify")
            stream = await peer.new_stream(host.get_id(), ["/p2pgrid/test/kad/1.0.0"])
            question = Message(type=Message.MessageType.FIND_NODE, key=bytes(32))
            await stream.write(encode_varint_prefixed(question.SerializeToString()))
            await read_varint_prefixed_bytes_limited(stream, 65_536)
            assert dht.size == 0

    run_trio(main)


def a_long_story(n: int) -> bytes:
    """An identify message with so many protocols and addresses."""
    return encode_varint_prefixed(
        Identify(
            protocols=[f"/p/{k}" for k in range(n)],
            listen_addrs=[bytes.fromhex("0401020304") + b"\x06" + k.to_bytes(2) for k in range(n)],
        ).SerializeToString()
    )


@pytest.mark.parametrize(("n", "is_kept"), [(20, True), (500, True), (20_000, False)])
@pytest.mark.parametrize("pushed", [False, True])
def test_what_a_peer_says_of_itself_is_cut_to_size(n: int, is_kept: bool, pushed: bool) -> None:
    async def main() -> None:
        said = trio.Event()

        async def tell(stream: Any) -> None:
            try:
                await stream.write(a_long_story(n) if not pushed else b"\x00")
                await stream.close()
            finally:
                said.set()  # or the host has heard enough

        async with listening_host() as host, dialling_host() as peer:
            peer.set_stream_handler(IDENTIFY, tell)
            await connect(peer, host)
            await said.wait()
            if pushed:
                stream = await peer.new_stream(host.get_id(), [IDENTIFY_PUSH])
                try:
                    await stream.write(a_long_story(n))
                    await stream.close()
                except (StreamError, IOException):
                    pass  # the host has heard enough
            await echo(peer, host)

            def names() -> int:
                entry = host.get_peerstore().peer_data_map.get(peer.get_id())
                return len(entry.get_protocols()) if entry is not None else 0

            if is_kept:
                await until(names, "it is kept")
            else:
                await until(lambda: not host.get_network().get_connections()[0].get_streams(), "it is over")
            assert names() == (min(n, MAX_PROTOCOLS) if is_kept else 0)
            if is_kept:
                known = host.get_peerstore().peer_data_map[peer.get_id()]
                assert len(known.get_addrs()) <= MAX_ADDRESSES

    run_trio(main)


def test_a_peer_that_never_says_who_it_is_is_served_all_the_same() -> None:
    async def main() -> None:
        async def silent(stream: Any) -> None:
            await trio.sleep_forever()

        async with listening_host() as host, dialling_host() as peer:
            peer.set_stream_handler(IDENTIFY, silent)
            await echo(peer, host)

    run_trio(main)


def test_frames_of_no_stream_are_dropped_and_cost_their_sender_alone() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as honest, raw_peer(host, HOSTILE) as hostile:
            for kind, flags in [(DATA, 0), (DATA, ACK), (WINDOW_UPDATE, 0), (WINDOW_UPDATE, ACK), (DATA, RST)]:
                await hostile.send(frame(kind, flags, 9999, body=b"x" if kind == DATA else b"") * 50)
            await hostile.frame(PING, SYN, 0, 4242)
            while (await hostile.read_frame())[::3] != (PING, 4242):
                pass
            await echo(honest, host)

    run_trio(main)
