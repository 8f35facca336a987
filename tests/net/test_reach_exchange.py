"""Real hosts that dial one another back: what is told of a port, and what a peer that is asked does not do."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable
from p2pgrid.net.direct import DirectListener, listen
from p2pgrid.net.host import open_host
from p2pgrid.net.reach_asking import reachability
from p2pgrid.net.reach_dial import remote_of
from p2pgrid.net.reach_exchange import Asked, ReachServer, ask_reach, newer_than_ours
from p2pgrid.net.reach_rules import ProbeLimits
from p2pgrid.net.reach_wire import MAX_MESSAGE_BYTES, PROTOCOL, Outcome, ReachAnswer, ReachRequest
from p2pgrid.net.reachability import Reach, Reachability
from p2pgrid.net.tcp import BufferedTcpStream
from p2pgrid.proto.keys import SecretKey
from tests.net.trio_hosts import LOOPBACK, connect, contact, dialling_host, listening_host, new_key, port, run_trio
from tests.ports import reserved_port

QUICK = ProbeLimits(dial_timeout_s=0.5)


@asynccontextmanager
async def asked_host(limits: ProbeLimits = QUICK, now_ms: Callable[[], int] | None = None) -> AsyncIterator[BasicHost]:
    """A host that dials others back."""
    async with listening_host() as host:
        (ReachServer(limits=limits, now_ms=now_ms) if now_ms else ReachServer(limits=limits)).serve(host)
        yield host


async def ask(asker: BasicHost, asked: BasicHost, *addresses: str) -> Asked:
    return await ask_reach(asker, contact(asked), ReachRequest(addresses=addresses), 10)


async def outcomes(asker: BasicHost, asked: BasicHost, *addresses: str) -> list[Outcome]:
    return list((await ask(asker, asked, *addresses)).answer.outcomes)


@contextmanager
def direct_road(key: SecretKey) -> Any:
    """A listener of the direct road, on an asyncio loop of its own; yields its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> DirectListener:
        return await listen("127.0.0.1", 0, key, on_stream=lambda stream: SimpleNamespace())

    listener = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield listener.addresses[0][1]
    finally:
        asyncio.run_coroutine_threadsafe(listener.aclose(drain_s=0), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def silent_listener(host: str = "127.0.0.1") -> Any:
    """A port that takes connections and says nothing; yields the socket."""
    with socket.create_server((host, 0)) as server:
        server.setblocking(False)
        yield server


def callers(server: socket.socket) -> list[bytes]:
    """What those sent who have connected, one for each."""
    found: list[bytes] = []
    while True:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return found
        with connection:
            connection.settimeout(20)
            data = b""
            while piece := connection.recv(4096):
                data += piece
            found.append(data)


# -- what is told of a port ------------------------------------------------------------------------------------


def test_a_port_that_is_open() -> None:
    async def main() -> None:
        async with asked_host() as b, listening_host() as a:
            at = f"/ip4/127.0.0.1/tcp/{port(a)}"
            wherever = f"/ip4/0.0.0.0/tcp/{port(a)}"
            named = f"/dns4/localhost/tcp/{port(a)}"
            found = await ask(a, b, at, wherever, named)
            assert list(found.answer.outcomes) == [Outcome.REACHED] * 3
            assert str(found.seen) == str(found.ip) == "127.0.0.1"
            assert abs(found.clock_ms) < 5_000

    run_trio(main)


def test_a_closed_port_is_closed_though_the_peers_are_connected() -> None:
    """Where AutoNAT says that all is well: the connection to the asker is open, and stays so."""

    async def main() -> None:
        async with asked_host() as b, listening_host() as a:
            [address] = [str(one) for one in a.get_transport_addrs()]
            await connect(a, b)
            [live] = b.get_network().get_connections(a.get_id())
            for listener in list(a.get_network().listeners.values()):
                await listener.close()
            assert await outcomes(a, b, address) == [Outcome.REFUSED]
            assert b.get_network().get_connections(a.get_id()) == [live], "the swarm knows of no other connection"
            assert not live.is_closed

    run_trio(main)


def test_dialling_back_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with asked_host() as b, listening_host() as a:
            address = f"/ip4/127.0.0.1/tcp/{port(a)}"
            assert await outcomes(a, b, address, "/ip4/127.0.0.1/tcp/1") == [Outcome.REACHED, Outcome.REFUSED]
            # The connection that was made for the question is closed, and B has made none of its own.
            with trio.fail_after(20):
                while a.get_network().connections or b.get_network().connections:  # noqa: ASYNC110
                    await trio.sleep(0.01)

    run_trio(main)


def test_another_peer_at_the_port() -> None:
    async def main() -> None:
        async with asked_host() as b, listening_host() as a, listening_host() as other:
            assert await outcomes(a, b, f"/ip4/127.0.0.1/tcp/{port(other)}") == [Outcome.WRONG_PEER]

    run_trio(main)


def test_something_else_at_the_port() -> None:
    """A web server, and one that takes the connection and says nothing."""

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as web, silent_listener() as silent:
            async with asked_host() as b, listening_host() as a, trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, answer, web)
                said = await outcomes(
                    a,
                    b,
                    f"/ip4/127.0.0.1/tcp/{web.getsockname()[1]}",
                    f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}",
                    f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/tls",
                )
                assert said == [Outcome.WRONG_PEER, Outcome.TIMED_OUT, Outcome.TIMED_OUT]

    run_trio(main)


def test_the_direct_road() -> None:
    key, other = new_key(), new_key()

    async def main() -> None:
        with direct_road(key) as own, direct_road(other) as theirs:
            async with asked_host() as b, open_host(key, [LOOPBACK]) as a:
                said = await outcomes(
                    a,
                    b,
                    f"/ip4/127.0.0.1/tcp/{own}/tls",
                    f"/ip4/127.0.0.1/tcp/{theirs}/tls",
                    f"/ip4/127.0.0.1/tcp/{port(a)}/tls",  # libp2p answers there
                    f"/ip4/127.0.0.1/tcp/{own}",  # and the direct road here
                )
                assert said == [Outcome.REACHED, *[Outcome.WRONG_PEER] * 3]

    run_trio(main)


# -- what is not done --------------------------------------------------------------------------------------------


def test_a_victim_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claims somebody else's address: as such, by a name, and in IPv6's clothes."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **named: Any) -> Any:
        return real("127.0.0.2" if host == "victim.example" else host, *arguments, **named)

    async def main() -> None:
        with silent_listener("127.0.0.2") as victim:
            at = victim.getsockname()[1]
            monkeypatch.setattr(socket, "getaddrinfo", resolve)
            async with asked_host() as b, listening_host() as a:
                said = await outcomes(
                    a,
                    b,
                    f"/ip4/127.0.0.2/tcp/{at}",
                    f"/ip4/127.0.0.2/tcp/{at}/tls",
                    f"/dns4/victim.example/tcp/{at}",
                    f"/dns/victim.example/tcp/{at}/tls",
                    f"/ip6/::ffff:127.0.0.2/tcp/{at}",
                    f"/ip4/127.0.0.1/tcp/{port(a)}",
                )
                assert said == [*[Outcome.NOT_TRIED] * 5, Outcome.REACHED]
            assert callers(victim) == []

    run_trio(main)


def test_what_is_sent_does_not_depend_on_the_request() -> None:
    """To a libp2p port multistream's greeting; to one of the direct road a TLS hello without any name."""

    async def main() -> None:
        with silent_listener() as plain, silent_listener() as secured:
            async with asked_host() as b, listening_host() as a:
                said = await outcomes(
                    a,
                    b,
                    f"/dns4/localhost/tcp/{plain.getsockname()[1]}",
                    f"/dns4/localhost/tcp/{secured.getsockname()[1]}/tls",
                )
                assert said == [Outcome.TIMED_OUT] * 2
            assert callers(plain) == [b"\x13/multistream/1.0.0\n"]
            [hello] = callers(secured)
            assert hello[:1] == b"\x16"
            assert b"localhost" not in hello

    run_trio(main)


def test_few_ports_of_one_request_are_dialled() -> None:
    async def main() -> None:
        with silent_listener() as one, silent_listener() as two:
            async with asked_host(ProbeLimits(dials=1, dial_timeout_s=0.2)) as b, listening_host() as a:
                texts = [f"/ip4/127.0.0.1/tcp/{each.getsockname()[1]}" for each in (one, one, two)]
                assert await outcomes(a, b, *texts) == [Outcome.TIMED_OUT, Outcome.TIMED_OUT, Outcome.NOT_TRIED]
            assert len(callers(one)) == 1
            assert callers(two) == []

    run_trio(main)


def test_floods_are_refused() -> None:
    async def main() -> None:
        limits = ProbeLimits(per_peer=2, per_ip=3, dial_timeout_s=0.5)
        async with asked_host(limits) as b, listening_host() as a, dialling_host() as other:
            address = f"/ip4/127.0.0.1/tcp/{port(a)}"
            for _ in range(2):
                assert await outcomes(a, b, address) == [Outcome.REACHED]
            with pytest.raises(Refused) as caught:
                await ask(a, b, address)
            assert caught.value.code == "too-often"
            assert await outcomes(other, b, address) == [Outcome.WRONG_PEER]
            with pytest.raises(Refused):  # the IP address has had its share
                await ask(other, b, address)
            assert (await ask(a, b)).answer.seen.startswith("/ip4/127.0.0.1/tcp/"), "the clock is told for nothing"

    run_trio(main)


def test_few_are_served_at_once() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
            async with asked_host(ProbeLimits(at_once=1, dial_timeout_s=1)) as b, listening_host() as a:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, a, b, address)
                    connection, _ = await trio.to_thread.run_sync(silent.accept)
                    with connection, pytest.raises(Unreachable):
                        await ask(a, b)
                assert (await ask(a, b)).answer.outcomes == ()

    run_trio(main)


def test_through_a_relay_nobody_is_seen() -> None:
    """What the connection lies on gives the relay's address, and is no TCP connection of its own."""

    class Relayed:
        def get_remote_address(self) -> tuple[str, int]:
            return ("203.0.113.66", 4001)

    def connection(inner: Any) -> Any:
        messages = SimpleNamespace(read_write_closer=inner)
        session = SimpleNamespace(conn=SimpleNamespace(read_writer=messages))
        return SimpleNamespace(secured_conn=session)

    class Socket:
        family = socket.AF_UNIX

        def getpeername(self) -> tuple[str, int]:
            return ("203.0.113.9", 4001)

    tcp = BufferedTcpStream(SimpleNamespace(socket=Socket()))  # type: ignore[arg-type]
    found = remote_of(connection(RawConnection(tcp, False)))
    assert found is not None
    assert (str(found[0]), found[2]) == ("203.0.113.9", 4001)
    assert remote_of(connection(RawConnection(Relayed(), False))) is None
    assert remote_of(connection(Relayed())) is None
    assert remote_of(SimpleNamespace()) is None


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff" + bytes(100),
        (MAX_MESSAGE_BYTES + 1).to_bytes(4),
        b"\x00\x00",
        b"\x00\x00\x00\x01\xc0",
        (2).to_bytes(4) + b"\x91\x90\x00",
    ],
)
def test_an_asker_that_breaks_the_rules(sent: bytes) -> None:
    async def main() -> None:
        async with asked_host() as b, dialling_host() as a:
            await connect(a, b)
            stream = await a.new_stream(b.get_id(), [PROTOCOL])
            await stream.write(sent)
            await stream.close()
            assert (await ask(a, b)).answer.outcomes == (), "the next one is answered"

    run_trio(main)


@pytest.mark.parametrize(
    "answer",
    [
        ReachAnswer(seen="", now_ms=0, outcomes=()).to_bytes(),
        ReachAnswer(seen="", now_ms=0, outcomes=(Outcome.REACHED,) * 2).to_bytes(),
        ReachAnswer(seen="/dns/a/tcp/1", now_ms=0, outcomes=(Outcome.REACHED,)).to_bytes(),
        ReachAnswer(seen="", now_ms=0, outcomes=(Outcome.REACHED,)).to_bytes() + b"\xc0",
        b"\xc0" * (MAX_MESSAGE_BYTES + 1),
    ],
)
def test_a_peer_whose_answer_does_not_fit(answer: bytes) -> None:
    async def reply(stream: Any) -> None:
        await stream.read(1000)
        await stream.write(len(answer).to_bytes(4) + answer)
        await stream.close()

    async def main() -> None:
        async with listening_host() as b, dialling_host() as a:
            b.set_stream_handler(PROTOCOL, reply)
            with pytest.raises(ProtocolViolation):
                await ask(a, b, "/ip4/127.0.0.1/tcp/1")

    run_trio(main)


def test_a_peer_that_does_not_know_the_protocol() -> None:
    async def main() -> None:
        async with listening_host() as b, dialling_host() as a:
            with pytest.raises(Refused) as caught:
                await ask(a, b)
            assert caught.value.code == "no-reach"

    run_trio(main)


def test_newer_protocols_are_told() -> None:
    assert newer_than_ours(
        ["/p2pgrid/offer/2", "/p2pgrid/card/1", "/p2pgrid/card/2", "/p2pgrid/session/3", "/p2pgrid/session/4", "/x/9"]
    ) == ("/p2pgrid/offer/2", "/p2pgrid/session/4")


# -- several peers -------------------------------------------------------------------------------------------------


async def judged(a: BasicHost, asked: list[BasicHost], addresses: list[str], timeout_s: float = 10) -> Reachability:
    return await reachability(a, [contact(one) for one in asked], addresses, timeout_s=timeout_s)


def says(outcome: Outcome, seen: str) -> Callable[[Any], Any]:
    """A peer that says the same whatever it is asked."""

    async def lie(stream: Any) -> None:
        request = await stream.read(4096)
        n = request.count(b"/tcp/")
        answer = ReachAnswer(seen=seen, now_ms=10**12, outcomes=(outcome,) * n).to_bytes()
        await stream.write(len(answer).to_bytes(4) + answer)
        await stream.close()

    return lie


@pytest.mark.parametrize("seen", ["/ip4/127.0.0.1/tcp/9", "/ip4/203.0.113.66/tcp/9", "/ip4/127.0.0.66/tcp/9"])
@pytest.mark.parametrize("is_open", [True, False])
def test_one_liar_of_three_does_not_decide(is_open: bool, seen: str) -> None:
    async def main() -> None:
        async with asked_host() as b, asked_host() as c, listening_host() as liar, listening_host() as a:
            liar.set_stream_handler(PROTOCOL, says(Outcome.REFUSED if is_open else Outcome.REACHED, seen))
            with reserved_port() as closed:
                address = f"/ip4/127.0.0.1/tcp/{port(a) if is_open else closed}"
                found = await judged(a, [b, c, liar], [address])
            assert found.answered == 3
            assert found.reach is (Reach.LOCAL if is_open else Reach.NOT)
            assert found.seen[0] == "127.0.0.1"
            assert abs(found.clock_ms or 0) < 5_000, "nor does its clock"

    run_trio(main)


def test_who_does_not_answer_is_replaced() -> None:
    async def main() -> None:
        async with asked_host() as b, listening_host() as stranger, listening_host() as a:
            gone = SimpleNamespace(
                get_id=stranger.get_id, get_transport_addrs=lambda: [Multiaddr("/ip4/127.0.0.1/tcp/1")]
            )
            found = await judged(a, [stranger, b], [f"/ip4/127.0.0.1/tcp/{port(a)}"])
            assert (found.asked, found.answered, found.silent) == (2, 1, 1)
            assert found.reach is Reach.LOCAL
            await a.disconnect(stranger.get_id())
            assert (await judged(a, [gone], [])).reach is Reach.UNKNOWN
            assert (await judged(a, [], [])).asked == 0

    run_trio(main)


def test_what_was_heard_in_time_is_judged() -> None:
    async def never(stream: Any) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with asked_host() as b, listening_host() as slow, listening_host() as a:
            slow.set_stream_handler(PROTOCOL, never)
            began = trio.current_time()
            found = await judged(a, [b, slow], [f"/ip4/127.0.0.1/tcp/{port(a)}"], timeout_s=1.5)
            assert (found.asked, found.answered, found.reach) == (2, 1, Reach.LOCAL)
            assert trio.current_time() - began < 8  # the one that says nothing has 10 s

    run_trio(main)


def test_a_wrong_clock_is_found() -> None:
    async def main() -> None:
        async with asked_host(now_ms=lambda: 1_000_000) as b, listening_host() as a:
            found = await reachability(a, [contact(b)], [], timeout_s=20, now_ms=lambda: 1_150_000)
            assert found.clock_ms == -150_000

    run_trio(main)
