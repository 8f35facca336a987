"""Links between members of closed networks, on real sockets: who is let in, whom a dialler trusts, what is stolen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pgrid.errors import Refused, Unreachable
from p2pgrid.net import direct, tls
from p2pgrid.net.direct import DirectListener, listen
from p2pgrid.net.libp2p_road import SessionListener
from p2pgrid.net.link_membership import called
from p2pgrid.net.member_books import GroupBook, ListBook, MemberBook, SecretBook
from p2pgrid.net.network import Network
from p2pgrid.net.own_networks import OwnNetwork, OwnNetworks
from p2pgrid.proto import frame
from p2pgrid.proto.closed_network import group_network, listed_network, secret_network
from p2pgrid.proto.frame import HEADER, GoawayCode, Kind, Terms, parse_reason
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.membership import sign_membership
from tests.net.road_rigs import CLIENT, OTHER, PROVIDER, Echo

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
GROUP = SecretKey(b"g" * 32)
SECRET = b"s" * 32
TERMS = Terms(max_streams=4, stream_credit_bytes=262_144)


def networks(*books: MemberBook | str, sells_in: tuple[str, ...] = ()) -> OwnNetworks:
    made = []
    for book in books:
        name = book if isinstance(book, str) else book.network.name
        made.append(
            OwnNetwork(name, (), book if isinstance(book, MemberBook) else None, not sells_in or name in sells_in)
        )
    return OwnNetworks(made)


def secret(name: str = "lab", closed_by: bytes = SECRET) -> MemberBook:
    return SecretBook(secret_network(name, closed_by))


def on_list(*keys: SecretKey) -> MemberBook:
    return ListBook(listed_network("lab"), tuple(key.public_key.peer_id for key in keys))


def in_group(path: Path, own: SecretKey, lasts_s: float = 600, group: SecretKey = GROUP) -> GroupBook:
    """The book of a peer that has a membership; with 0 s, of one that has none."""
    file = path / f"{own.public_key.peer_id}-{lasts_s}.membership"
    if lasts_s:
        until_ms = time.time_ns() // 1_000_000 + int(lasts_s * 1000)
        record = sign_membership(group, "lab", own.public_key, valid_from_ms=until_ms - 10**8, valid_until_ms=until_ms)
        file.write_bytes(record.record.to_json_line())
    return GroupBook(group_network("lab", group.public_key), own.public_key, file)


@contextlib.asynccontextmanager
async def provider(own: OwnNetworks | None) -> AsyncIterator[DirectListener]:
    listener = await listen(
        "127.0.0.1", 0, PROVIDER, on_stream=lambda _: Echo(), membership=called(own, PROVIDER) if own else None
    )
    try:
        yield listener
    finally:
        await listener.aclose(drain_s=0)


async def dial(listener: DirectListener, own: OwnNetworks | None, key: SecretKey = CLIENT) -> frozenset[str]:
    """The networks in which the provider has shown itself a member to a dialler that was let in."""
    link = await direct.dial(*listener.addresses[0], PROVIDER.public_key, key, networks=own)
    try:
        assert link.open_stream(Echo()).is_open
        if own is None:
            assert not link.member_of
        return link.member_of
    finally:
        await link.aclose()


async def refusal(listener: DirectListener, own: OwnNetworks | None, key: SecretKey = CLIENT) -> str:
    with pytest.raises(Refused) as caught:
        await dial(listener, own, key)
    assert caught.value.code == "not-a-member"
    assert not [link for link in listener.connections if link.n_streams]
    return str(caught.value)


async def test_members_and_outsiders_of_a_secret() -> None:
    async with provider(networks(secret())) as lab:
        assert await dial(lab, networks(secret())) == {"lab"}
        assert await dial(lab, networks("main", secret("club", b"c" * 32), secret())) == {"lab"}
        for own in (
            None,
            networks("main"),
            networks("lab"),
            networks(secret(closed_by=b"o" * 32)),
            networks(secret("lab2")),
        ):
            assert "members of closed networks alone" in await refusal(lab, own)


async def test_members_and_outsiders_of_a_list() -> None:
    async with provider(networks(on_list(PROVIDER, CLIENT))) as lab:
        assert await dial(lab, networks(on_list(PROVIDER))) == {"lab"}
        assert "is not on the list of members" in await refusal(lab, networks(on_list(PROVIDER)), OTHER)
        # The dialler's own list does not name the provider: it says so, and asks for nothing.
        assert f"{PROVIDER.public_key} is not on the list" in await refusal(lab, networks(on_list(CLIENT)))


async def test_members_and_outsiders_of_a_group(tmp_path: Path) -> None:
    async with provider(networks(in_group(tmp_path, PROVIDER))) as lab:
        assert await dial(lab, networks(in_group(tmp_path, CLIENT))) == {"lab"}
        assert "it ended" in await refusal(lab, networks(in_group(tmp_path, CLIENT, lasts_s=-5)))
        assert "closed networks alone" in await refusal(lab, networks(in_group(tmp_path, CLIENT, lasts_s=0)))
        other = in_group(tmp_path, CLIENT, lasts_s=601, group=OTHER)
        assert "closed networks alone" in await refusal(lab, networks(other))
        # Another's membership, under one's own key.
        stolen = in_group(tmp_path, OTHER)
        assert "another peer" in await refusal(lab, networks(stolen), CLIENT)
    async with provider(networks(in_group(tmp_path, PROVIDER, lasts_s=-5))) as lapsed:
        assert "it ended" in await refusal(lapsed, networks(in_group(tmp_path, CLIENT)))


async def test_a_provider_that_sells_in_the_open_lets_everybody_in_and_shows_itself_to_members() -> None:
    async with provider(networks(secret(), "main")) as both:
        assert await dial(both, None) == frozenset()
        assert await dial(both, networks("main")) == frozenset()
        assert await dial(both, networks(secret())) == {"lab"}
        # One in the closed network alone that shows another secret wants a member, and this is none to it.
        assert "does not show that it is in 'lab'" in await refusal(both, networks(secret(closed_by=b"o" * 32)))
        # Where it is in the open network too, it need not be.
        assert await dial(both, networks("main", secret(closed_by=b"o" * 32))) == frozenset()
    async with provider(networks(secret(), "main", sells_in=("lab",))) as picky:
        assert await dial(picky, networks("main", secret())) == {"lab"}
        assert "closed networks alone" in await refusal(picky, networks("main"))


async def test_a_provider_found_in_an_open_network_is_shown_nothing() -> None:
    own = networks("main", secret())
    async with provider(networks("main")) as lab:
        own.note_found(PROVIDER.public_key.peer_id, ["main"])
        assert await dial(lab, own) == frozenset()
        own.note_found(PROVIDER.public_key.peer_id, ["lab"])
        assert "does not show" in await refusal(lab, own)


@pytest.mark.parametrize(
    ("found", "first"), [(["main"], Kind.PROOF), (["main", "lab"], Kind.MEMBER), (None, Kind.MEMBER)]
)
async def test_what_a_dialler_says_of_itself_depends_on_where_the_provider_was_found(
    found: list[str] | None, first: Kind
) -> None:
    own, heard = networks("main", secret()), asyncio.get_running_loop().create_future()
    if found is not None:
        own.note_found(PROVIDER.public_key.peer_id, found)

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = frame.encode_hello(bytes(32), TERMS)
        writer.write(frame.encode_frame(0, Kind.HELLO, hello))
        heard.set_result((await read_frame(reader))[0])
        writer.transport.abort()

    server = await asyncio.start_server(hear, "127.0.0.1", 0, ssl=tls.listener_context(PROVIDER))
    with pytest.raises(Unreachable):
        await direct.dial(*server.sockets[0].getsockname(), PROVIDER.public_key, CLIENT, networks=own, timeout_s=5)
    assert await heard == first
    server.close()


async def frames_of(reader: asyncio.StreamReader) -> list[tuple[int, bytes]]:
    """Kind and payload of what comes until the road ends."""
    raw, found = await reader.read(), []
    while raw:
        length, _, kind = HEADER.unpack_from(raw)
        found.append((kind, raw[9 : 9 + length]))
        raw = raw[9 + length :]
    return found


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Kind, payload, and the frame as it came."""
    head = await reader.readexactly(9)
    length, _, kind = HEADER.unpack(head)
    payload = await reader.readexactly(length)
    return kind, payload, head + payload


async def test_a_proof_passed_on_to_another_provider_is_refused() -> None:
    """OTHER, no member, is called by a member, and hands PROVIDER what it is shown while that is fresh."""
    verdict: asyncio.Future[list[tuple[int, bytes]]] = asyncio.get_running_loop().create_future()
    async with provider(networks(secret())) as lab:

        async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection(
                *lab.addresses[0], ssl=tls.dialler_context(), server_hostname=""
            )
            _, _, hello = await read_frame(up_reader)
            writer.write(hello)
            kind, _, member = await read_frame(reader)
            assert kind == Kind.MEMBER
            # Its own key in PROOF, over PROVIDER's nonce, with the member's credentials before it.
            nonce = hello[11:43]
            proof = frame.encode_proof(OTHER, PROVIDER.public_key, nonce, TERMS)
            up_writer.write(member + frame.encode_frame(0, Kind.PROOF, proof))
            verdict.set_result(await frames_of(up_reader))
            writer.transport.abort()
            up_writer.transport.abort()

        server = await asyncio.start_server(middle, "127.0.0.1", 0, ssl=tls.listener_context(OTHER))
        with contextlib.suppress(Exception):
            await direct.dial(
                *server.sockets[0].getsockname(), OTHER.public_key, CLIENT, networks=networks(secret()), timeout_s=5
            )
        (kind, payload) = (await verdict)[-1]
        assert kind == Kind.GOAWAY and parse_reason(payload)[0] == GoawayCode.NOT_A_MEMBER
        server.close()


async def test_the_same_frames_on_a_second_link_are_refused() -> None:
    """What a member sent, byte for byte: the nonce is another one."""
    async with provider(networks(secret())) as lab:
        heard = bytearray()

        async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection(
                *lab.addresses[0], ssl=tls.dialler_context(), server_hostname=""
            )
            writer.write((await read_frame(up_reader))[2])
            for _ in range(2):
                heard.extend((await read_frame(reader))[2])
            writer.transport.abort()
            up_writer.transport.abort()

        # Somebody who holds the provider's key, and is no member, listens in its place.
        server = await asyncio.start_server(tap, "127.0.0.1", 0, ssl=tls.listener_context(PROVIDER))
        with contextlib.suppress(Exception):
            await direct.dial(
                *server.sockets[0].getsockname(), PROVIDER.public_key, CLIENT, networks=networks(secret()), timeout_s=5
            )
        assert heard
        reader, writer = await asyncio.open_connection(*lab.addresses[0], ssl=tls.dialler_context(), server_hostname="")
        await read_frame(reader)
        writer.write(bytes(heard))
        kinds = [kind for kind, _ in await frames_of(reader)]
        assert kinds == [Kind.GOAWAY]
        server.close()


async def test_a_refused_dialler_has_asked_for_nothing_and_was_told_nothing() -> None:
    async with provider(networks(secret())) as lab:
        reader, writer = await asyncio.open_connection(*lab.addresses[0], ssl=tls.dialler_context(), server_hostname="")
        kind, payload, _ = await read_frame(reader)
        proof = frame.encode_proof(CLIENT, PROVIDER.public_key, payload[2:34], TERMS)
        writer.write(frame.encode_frame(0, Kind.PROOF, proof) + frame.encode_frame(1, Kind.OPEN))
        assert [kind, *[one for one, _ in await frames_of(reader)]] == [Kind.HELLO, Kind.GOAWAY]


async def test_over_libp2p_the_links_own_key_has_to_be_a_members_too() -> None:
    """A member's host that carries the link of an outsider: the connection is a member's, the link is not."""
    book = on_list(PROVIDER, CLIENT)
    sessions = SessionListener(PROVIDER, on_stream=lambda _: Echo(), membership=called(networks(book), PROVIDER))
    async with (
        Network(PROVIDER, networks(book), listen=[LOOPBACK], sessions=sessions) as host,
        Network(CLIENT, networks(on_list(PROVIDER, CLIENT))) as client,
    ):
        link = await client.dial_link(PROVIDER.public_key, host.addresses)
        assert link.member_of == {"lab"}
        await link.aclose()
        client._secret_key = OTHER
        with pytest.raises(Refused, match="is not on the list") as caught:
            await client.dial_link(PROVIDER.public_key, host.addresses)
        assert caught.value.code == "not-a-member"
        await sessions.aclose(drain_s=0)
