"""A host against hostile peers: each row of the tables in host.py, swarm.py, yamux.py and peerstore.py."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from typing import Any

import libp2p.network.connection.swarm_connection as swarm_connection_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT
from multiaddr import Multiaddr

import p2pgrid.net.swarm as swarm_module
from p2pgrid.errors import LocalError
from p2pgrid.net.dht import Dht
from p2pgrid.net.host import HostLimits, check_free, open_host
from p2pgrid.net.peerstore import OwnKeyPeerStore
from p2pgrid.net.yamux import MAX_UNREAD_BYTES, ShieldedYamux
from tests.net.trio_hosts import (
    ECHO,
    connect,
    dialling_host,
    echo,
    listening_host,
    new_key,
    port,
    run_trio,
    until,
)

MULTISTREAM = b"\x13/multistream/1.0.0\n"
MALFORMED = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "invalid UTF-8": MULTISTREAM + b"\x05\xff\xfe\xfd\xfc\n",
    "zeros": bytes(64),
    "a noise handshake of noise": MULTISTREAM + b"\x07/noise\n" + b"\x00\x20" + bytes(32) + b"\x00\x40" + bytes(64),
    "an endless varint": b"\xff" * 40,
    "a name of 4 GB": b"\xff\xff\xff\xff\x0f" + b"x" * 100,
    "a name of 2^62 bytes": b"\xff" * 8 + b"\x3f" + b"x" * 100,
    "nothing": b"",
}


def test_the_host_outlives_malformed_connections() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as honest:
            for payload in MALFORMED.values():
                stream = await trio.open_tcp_stream("127.0.0.1", port(host))
                await stream.send_all(payload)
                await stream.send_eof()
                try:
                    while await stream.receive_some(4096):
                        pass
                except trio.BrokenResourceError:
                    pass
                await stream.aclose()
            await echo(honest, host)

    run_trio(main)


def test_an_overlong_protocol_name_ends_the_connection_at_once() -> None:
    """Not after ten seconds of reading it into memory."""

    async def main() -> None:
        async with listening_host() as host:
            stream = await trio.open_tcp_stream("127.0.0.1", port(host))
            await stream.send_all(MALFORMED["a name of 4 GB"])
            with trio.fail_after(8):
                try:
                    while await stream.receive_some(4096):
                        pass
                except trio.BrokenResourceError:
                    pass

    run_trio(main)


@pytest.mark.parametrize(
    "payload", [b"\x05\xff\xfe\xfd\xfc\n", b"\xff\xff\xff\xff\x0f", b"\x00", b"\x03abc", MULTISTREAM + b"\x02\xff\n"]
)
def test_a_malformed_protocol_name_on_a_stream_ends_that_stream(payload: bytes) -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            connection = await connect(peer, host)
            stream = await peer.get_network().new_stream(host.get_id())
            await stream.write(payload)
            with pytest.raises(StreamError):
                while await stream.read(1024):
                    pass
            await echo(peer, host)
            assert not connection.is_closed

    run_trio(main)


def test_an_exception_in_a_handler_ends_that_stream_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def broken(stream: Any) -> None:
            await stream.read(1)
            raise ValueError("a fault of the handler")

        async with listening_host() as host, dialling_host() as peer:
            host.set_stream_handler("/broken/1", broken)
            connection = await connect(peer, host)
            for _ in range(3):
                stream = await peer.new_stream(host.get_id(), ["/broken/1"])
                await stream.write(b"x")
                with pytest.raises(StreamError):
                    await stream.read(1)
            await echo(peer, host)
            assert not connection.is_closed

    with caplog.at_level(logging.WARNING):
        run_trio(main)
    assert [r.getMessage() for r in caplog.records if "a fault of the handler" in r.getMessage()] != []
    assert len(caplog.records) == 1


def test_cancelled_writers_leave_the_connection_whole() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            connection = await connect(peer, host)

            async def write_on() -> None:
                stream = await peer.new_stream(host.get_id(), [ECHO])
                try:
                    while True:
                        await stream.write(b"y" * 1000)
                finally:
                    with trio.CancelScope(shield=True):
                        await stream.reset()

            for round_number in range(25):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(write_on)
                    await trio.sleep(0.002 + 0.0007 * round_number)  # cut off at ever other points of a write
                    nursery.cancel_scope.cancel()
            await echo(peer, host)
            assert not connection.is_closed
            assert connection.muxed_conn.stream_backlog_semaphore.value >= 250  # no slot went with a cancelled task

    run_trio(main)


class _NeverTakesData:
    """A secured connection to a peer that has stopped reading."""

    is_initiator = True

    def __init__(self) -> None:
        self.closed = False

    async def write(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def close(self) -> None:
        self.closed = True


def test_a_peer_that_takes_no_data_loses_its_connection() -> None:
    async def main() -> None:
        secured = _NeverTakesData()
        muxed = ShieldedYamux(secured, ID(b"peer"))
        muxed.write_timeout_s = 0.05
        with pytest.raises(MuxedStreamError, match="took no data"):
            await muxed._write_frame(bytes(12))
        assert secured.closed

    run_trio(main)


def test_a_peer_that_ignores_its_window_loses_its_connection() -> None:
    async def main() -> None:
        async def never_reads(stream: Any) -> None:
            await trio.sleep_forever()

        async with listening_host() as host, dialling_host() as peer, dialling_host() as honest:
            host.set_stream_handler("/never-reads/1", never_reads)
            await connect(peer, host)
            stream = await peer.new_stream(host.get_id(), ["/never-reads/1"])
            muxed, stream_id = stream.muxed_conn, stream.muxed_stream.stream_id
            frame = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream_id, 60_000) + bytes(60_000)
            sent = 0
            with contextlib.suppress(Exception):  # whatever a broken connection raises, if its news comes in time
                while sent < 4 * MAX_UNREAD_BYTES:
                    await muxed._write_frame(frame)
                    sent += 60_000
                    if peer.get_network().get_connections(host.get_id()) == []:
                        raise ConnectionError
            await until(lambda: peer.get_id() not in host.get_network().connections, "the connection is dropped")
            await echo(honest, host)

    run_trio(main)


def test_plaintext_is_refused() -> None:
    """A peer that speaks it could claim to be anybody."""

    async def main() -> None:
        keys = create_new_key_pair()
        peer = new_host(key_pair=keys, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
        async with listening_host() as host, peer.run([]):
            with pytest.raises(SwarmException):
                await peer.connect(PeerInfo(host.get_id(), host.get_transport_addrs()))
            assert host.get_network().get_connections() == []

    run_trio(main)


def test_another_peer_at_the_address_is_refused() -> None:
    async def main() -> None:
        async with listening_host() as impostor, dialling_host() as peer:
            wanted = ID.from_base58(new_key().public_key.peer_id)
            with pytest.raises(SwarmException):
                await peer.get_network().connect_to(wanted, impostor.get_transport_addrs())

    run_trio(main)


def test_connecting_waits_for_nothing() -> None:
    """libp2p itself takes 250 ms; the best of five is looked at, on a machine that may be busy."""

    async def main() -> None:
        times_s = []
        async with listening_host() as host:
            for _ in range(5):
                async with dialling_host() as peer:
                    began = trio.current_time()
                    await connect(peer, host)
                    times_s.append(trio.current_time() - began)
        assert min(times_s) < 0.15

    run_trio(main)


def test_a_failed_dial_does_not_bar_the_right_address() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            nobody = Multiaddr("/ip4/127.0.0.1/tcp/1")
            with pytest.raises(SwarmException):
                await peer.get_network().connect_to(host.get_id(), [nobody])
            await echo(peer, host)

    run_trio(main)


def test_every_address_is_tried() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            dead = [Multiaddr(f"/ip4/127.0.0.1/tcp/{n}") for n in range(1, 6)]
            await peer.get_network().connect_to(host.get_id(), [*dead, *host.get_transport_addrs()])
            await echo(peer, host)

    run_trio(main)


def test_an_ended_connection_gives_its_slot_back() -> None:
    async def main() -> None:
        async with listening_host(HostLimits(max_connections=4)) as host, dialling_host() as peer:
            for _ in range(10):
                await echo(peer, host)
                await peer.disconnect(host.get_id())
                await until(lambda: not host.get_network().get_connections(), "the host saw the connection end")

    run_trio(main)


def test_one_address_cannot_take_every_slot() -> None:
    async def main() -> None:
        async with listening_host(HostLimits(max_inbound_per_ip=2)) as host:
            idle = [await trio.open_tcp_stream("127.0.0.1", port(host)) for _ in range(2)]
            for stream in idle:
                assert await stream.receive_some(64)  # the host has accepted it, and greets
            third = await trio.open_tcp_stream("127.0.0.1", port(host))
            assert await third.receive_some(64) == b""
            await idle[0].aclose()
            async with dialling_host() as peer:
                network = peer.get_network()
                for _ in range(50):
                    try:
                        await network.connect_to(host.get_id(), host.get_transport_addrs())
                        break
                    except SwarmException:
                        await trio.lowlevel.checkpoint()
                await echo(peer, host)

    run_trio(main)


def test_streams_over_the_cap_are_reset() -> None:
    async def main() -> None:
        async with listening_host(HostLimits(max_inbound_streams_per_connection=5)) as host, dialling_host() as peer:
            await connect(peer, host)
            await until(lambda: not host.get_network().get_connections()[0].get_streams(), "identify is over")
            held = [await peer.new_stream(host.get_id(), [ECHO]) for _ in range(5)]
            raw = await peer.get_network().new_stream(host.get_id())
            with pytest.raises(StreamError):
                await raw.read(1)
            for stream in held:
                await stream.reset()
            await until(lambda: not host.get_network().get_connections()[0].get_streams(), "the streams ended")
            await echo(peer, host)

    run_trio(main)


def test_so_many_connections_are_taken_and_no_more() -> None:
    """libp2p's resource manager lets one too few through."""

    async def main() -> None:
        async with listening_host(HostLimits(max_connections=3)) as host:
            streams = [await trio.open_tcp_stream("127.0.0.1", port(host)) for _ in range(5)]
            assert [bool(await stream.receive_some(64)) for stream in streams] == [True] * 3 + [False] * 2

    run_trio(main)


def test_what_peers_see_of_us_is_not_collected() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            await echo(peer, host)
            assert host._observed_addr_manager is None
            assert peer._observed_addr_manager is None

    run_trio(main)


def test_a_dialled_address_that_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_module, "DIAL_TIMEOUT_S", 0.3)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with dialling_host() as peer:
                address = Multiaddr(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}")
                unknown = ID.from_base58(new_key().public_key.peer_id)
                with trio.fail_after(7), pytest.raises(SwarmException, match="no answer in"):
                    await peer.get_network().connect_to(unknown, [address])

    run_trio(main)


class _SlowToNotice:
    """A listener to the swarm, during whose work the task that opens a stream is cancelled."""

    async def opened_stream(self, network: Any, stream: Any) -> None:
        await trio.sleep(0.1)

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def disconnected(self, network: Any, connection: Any) -> None: ...


def test_a_task_cancelled_while_it_opens_a_stream_leaves_none_open() -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            connection = await connect(peer, host)
            await until(lambda: not connection.get_streams(), "identify is over")
            peer.get_network().register_notifee(_SlowToNotice())
            given = []
            for _ in range(3):
                with trio.move_on_after(0.02):
                    given.append(await peer.get_network().new_stream(host.get_id()))
            await echo(peer, host)
            assert given
            await until(lambda: set(connection.get_streams()) <= {*given}, "no other stream is open", 3)

    run_trio(main)


@pytest.mark.parametrize("how", ["is_broken", "event_shutting_down"])
def test_a_connection_that_is_ending_is_passed_over(how: str) -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            ending = await connect(peer, host)
            if how == "is_broken":
                ending.muxed_conn.is_broken = True
            else:
                ending.muxed_conn.event_shutting_down.set()
            assert await connect(peer, host) is not ending
            await echo(peer, host)

    run_trio(main)


def test_a_stream_that_is_read_slowly_takes_no_more_than_its_window() -> None:
    """libp2p's own grants ever more to a peer that is read fast, and then holds as much when the reader stalls."""

    async def main() -> None:
        stalled = trio.Event()
        taken = 0

        async def reads_and_stalls(stream: Any) -> None:
            nonlocal taken
            while taken < 2 * 1024 * 1024:
                taken += len(await stream.read(64 * 1024))
            stalled.set()
            await trio.sleep_forever()

        async with listening_host() as host, dialling_host() as peer:
            host.set_stream_handler("/stalls/1", reads_and_stalls)
            await connect(peer, host)
            stream = await peer.new_stream(host.get_id(), ["/stalls/1"])
            sent = 0
            with trio.move_on_after(4):
                while True:
                    await stream.write(bytes(16 * 1024))
                    sent += 16 * 1024
            assert stalled.is_set()
            assert sent - taken <= DEFAULT_WINDOW_SIZE + 16 * 1024

    run_trio(main)


def test_a_reset_does_not_read_like_an_end() -> None:
    """Not even to a reader that looks when the stream is forgotten already."""

    async def main() -> None:
        heard: list[type[Exception]] = []
        began: list[bytes] = []

        async def reads_late(stream: Any) -> None:
            began.append(await stream.read(1))
            muxed = stream.muxed_stream
            await until(lambda: muxed.recv_closed or muxed.stream_id not in muxed.conn.streams, "the end has come")
            try:
                await stream.read(1)
            except StreamError as error:
                heard.append(type(error))

        async with listening_host() as host, dialling_host() as peer:
            host.set_stream_handler("/reads/1", reads_late)
            await connect(peer, host)
            for n, end in enumerate(("close", "reset"), 1):
                stream = await peer.new_stream(host.get_id(), ["/reads/1"])
                await stream.write(b"x")
                await until(lambda n=n: len(began) == n, "the stream is being read")
                await getattr(stream, end)()
                await until(lambda n=n: len(heard) == n, "it was heard")
            assert heard == [StreamEOF, StreamReset]

    run_trio(main)


def test_a_fault_in_a_connections_task_ends_that_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamux_module, "_STALE_STREAM_SWEEP_INTERVAL", 0.2)

    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer, dialling_host() as honest:
            connection = await connect(peer, host)
            await connect(honest, host)
            (theirs,) = host.get_network().get_connections(peer.get_id())

            def fault() -> None:
                raise ValueError("a fault of the library")

            theirs.muxed_conn._sweep_stale_streams = fault
            await until(lambda: connection.is_closed, "the connection is closed")
            await echo(honest, host)
            await echo(peer, host)

    run_trio(main)


def test_a_caller_over_ipv6_is_counted_by_its_network() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")

    async def main() -> None:
        async with open_host(new_key(), [Multiaddr("/ip6/::1/tcp/0")]) as host, dialling_host() as peer:
            await connect(peer, host)
            assert host.get_network()._seats.held_by("::/64") == 1

    run_trio(main)


def test_strangers_cannot_make_the_host_forget_its_key() -> None:
    keys = create_new_key_pair()
    own = ID.from_pubkey(keys.public_key)
    store = OwnKeyPeerStore(own)
    store.add_key_pair(own, keys)
    address = Multiaddr("/ip4/192.0.2.1/tcp/4001")
    for n in range(1200):
        store.add_addrs(ID(b"\x00\x24" + n.to_bytes(36)), [address], 3600)
    assert len(store.peer_ids()) <= 1001
    assert store.privkey(own).to_bytes() == keys.private_key.to_bytes()


def test_what_peers_cause_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            Dht(host, "test", serve=True).server.start(None)
            await echo(peer, host)
            asked = await peer.new_stream(host.get_id(), ["/p2pgrid/test/kad/1.0.0"])
            await asked.close()
            await peer.disconnect(host.get_id())
            with pytest.raises(SwarmException):
                await peer.get_network().connect_to(host.get_id(), [Multiaddr("/ip4/127.0.0.1/tcp/1")])
            stream = await trio.open_tcp_stream("127.0.0.1", port(host))
            await stream.send_all(b"nonsense" * 100)
            await stream.aclose()
            await until(lambda: not host.get_network().get_connections(), "all is quiet")

    with caplog.at_level(logging.INFO):
        run_trio(main)
    assert caplog.records == []
    assert isinstance(swarm_connection_module.logging, logging.Logger)  # or it would put a handler on the root


def test_libp2p_is_shown_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listening_host() as host, dialling_host() as peer:
            with pytest.raises(SwarmException):
                another = ID.from_base58(new_key().public_key.peer_id)
                await peer.get_network().connect_to(another, host.get_transport_addrs())

    with caplog.at_level(logging.DEBUG, logger="p2pgrid.net.libp2p"):
        run_trio(main)
    assert any(r.name.startswith("p2pgrid.net.libp2p.") and r.levelno == logging.DEBUG for r in caplog.records)


def test_a_port_in_use_is_named() -> None:
    async def main() -> None:
        async with listening_host() as host:
            with pytest.raises(LocalError, match=f"port {port(host)} .*in use") as caught:
                async with open_host(new_key(), host.get_transport_addrs()):
                    pass
            assert "another port" in caught.value.hint

    run_trio(main)


def test_a_foreign_address_cannot_be_listened_on() -> None:
    with pytest.raises(LocalError, match=r"192\.0\.2\.1 is not an address of this machine"):
        check_free(Multiaddr("/ip4/192.0.2.1/tcp/0"))


def test_an_ordinary_listener_is_noticed_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(LocalError, match="in use"):
        check_free(Multiaddr(f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"))
