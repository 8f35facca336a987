"""What a host in closed networks answers, to whom; and what it asks of whom."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError

import p2pgrid.net.members.gate as gate_module
from p2pgrid.errors import Refused
from p2pgrid.net.dht import Dht
from p2pgrid.net.host import negotiate_on
from p2pgrid.net.kad_query import KadQuery
from p2pgrid.net.lookup_keys import scoped_key
from p2pgrid.net.members.exchange import PROTOCOL
from p2pgrid.net.members.gate import FREE
from p2pgrid.net.one_network import OneNetwork
from p2pgrid.net.relay.messages import STOP
from p2pgrid.proto.keys import parse_peer_id
from tests.net.members.rigs import (
    OTHER_SECRET,
    Member,
    force,
    list_book,
    listed,
    member,
    networks,
    secret_book,
    talk,
)
from tests.net.trio_hosts import (
    ECHO,
    connect,
    contact,
    dialling_host,
    listening_host,
    new_key,
    run_trio,
    until,
)


def test_members_deal_with_one_another() -> None:
    async def main() -> None:
        async with member() as one, member(listens=False) as other:
            assert await talk(other.host, one.host) == b"hello"
            assert one.sees(other.host) == other.sees(one.host) == {"lab"}
            # The one that was dialled needs no more to use the other.
            assert await force(one.host, other.host) == b"hello"

    run_trio(main)


@pytest.mark.parametrize("who", ["nobody", "another secret", "another name", "a list of the same name", "open"])
def test_who_is_no_member_is_answered_nothing(who: str) -> None:
    key = new_key()
    books: dict[str, Any] = {
        "another secret": secret_book(secret=OTHER_SECRET),
        "another name": secret_book("lab2"),
        "a list of the same name": list_book(key),
        "open": "lab",
    }

    async def main() -> None:
        async with member() as inside:
            if who == "nobody":
                async with dialling_host() as outside:
                    await is_refused(inside, outside)
                return
            async with member(books[who], key=key, listens=False) as outside_member:
                if who == "open":
                    with pytest.raises(StreamFailure):
                        await talk(outside_member.host, inside.host)
                else:
                    with pytest.raises(Refused, match="does not take this node for a member") as caught:
                        await talk(outside_member.host, inside.host)
                    assert caught.value.code == "not-a-member" and caught.value.hint
                await is_refused(inside, outside_member.host)

    run_trio(main)


async def is_refused(inside: Member, outside: Any) -> None:
    with pytest.raises(StreamFailure):
        await force(outside, inside.host)
    assert await listed(outside, inside.host) == FREE - {STOP}
    assert await told_by_identify(outside, inside.host) == FREE - {STOP}
    assert not inside.sees(outside)
    assert inside.host.get_network().get_connections(outside.get_id())
    assert ECHO in inside.host.multiselect.handlers
    assert await force(outside, inside.host, str(PING), b"p" * 32) == b"p" * 32


async def told_by_identify(a: Any, b: Any) -> set[str]:
    stream = await negotiate_on(a, await connect(a, b), str(IDENTIFY))
    raw = bytearray()
    while True:
        try:
            raw += await stream.read(65536)
        except Exception:  # noqa: BLE001 - the end
            break
        try:
            return set(parse_identify_response(bytes(raw)).protocols)
        except Exception:  # noqa: BLE001 - more is to come
            continue
    return set(parse_identify_response(bytes(raw)).protocols)


def test_an_outsider_that_knows_the_scope_gets_into_no_dht() -> None:
    async def main() -> None:
        async with member() as one, member() as other, dialling_host() as outside:
            scope = one.own["lab"].scope
            tables = []
            async with trio.open_nursery() as nursery:
                for node in (one, other):
                    dht = Dht(node.host, scope, serve=True)
                    node.gate.belongs(dht.protocol, "lab")
                    nursery.start_soon(dht.run)
                    tables.append(dht)
                assert await tables[1].join([contact(one.host)]) == 1
                key = scoped_key(scope, "provider")
                assert await tables[1].announce(key) == 1
                query = KadQuery(outside, tables[0].protocol)
                for asking in (query.find_node, query.get_providers, query.add_provider):
                    with pytest.raises(StreamFailure):
                        await asking(contact(one.host), key)
                held = tables[0].member.records.of(key, trio.current_time(), random.random)
                assert [str(ID(record.peer)) for record in held] == [other.peer_id]
                nursery.cancel_scope.cancel()

    run_trio(main)


def test_nothing_is_used_with_an_outsider() -> None:
    seen: list[str] = []

    async def main() -> None:
        async with listening_host() as outside, member(listens=False) as inside:
            echo = outside.multiselect.handlers[ECHO]

            async def noted(stream: Any) -> None:
                seen.append(ECHO)
                await echo(stream)

            outside.set_stream_handler(ECHO, noted)
            with pytest.raises(Refused, match="is in no closed network") as caught:
                await talk(inside.host, outside)
            assert caught.value.code == "not-a-member"
            assert seen == []
            assert inside.gate.fault_of(outside.get_id()) is caught.value

    run_trio(main)


def test_each_side_goes_by_its_own_list() -> None:
    one_key, other_key, third_key = new_key(), new_key(), new_key()

    async def main() -> None:
        both = list_book(one_key, other_key)
        async with member(both, key=one_key) as one, member(both, key=other_key) as other:
            assert await talk(one.host, other.host) == b"hello"
        # The dialled has the dialler on its list, and is not on the dialler's.
        async with member(list_book(one_key), key=one_key) as one, member(both, key=other_key) as other:
            with pytest.raises(Refused, match="is not on the list of members of 'lab'"):
                await talk(one.host, other.host)
        async with member(both, key=one_key) as one, member(both, key=third_key) as third:
            with pytest.raises(Refused, match="does not take this node"):
                await talk(third.host, one.host)

    run_trio(main)


def test_a_member_that_is_taken_off_the_list_loses_all_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "LAPSED_S", 1.0)
    monkeypatch.setattr(gate_module, "PROVE_WITHIN_S", 2.0)
    monkeypatch.setattr(gate_module, "RETRY_S", 0.5)
    monkeypatch.setattr(gate_module, "LOOK_INTERVAL_S", 0.1)
    one_key, other_key = new_key(), new_key()

    async def main() -> None:
        book = list_book(one_key, other_key)
        theirs = list_book(one_key, other_key)
        async with member(book, key=one_key) as one, member(theirs, key=other_key, listens=False) as other:
            assert await talk(other.host, one.host) == b"hello"
            before = book._members
            book._members = frozenset({one_key.public_key.peer_id})
            with pytest.raises(StreamFailure):  # at once, on the connection that it has
                await force(other.host, one.host)
            assert one.sees(other.host) == frozenset()
            await until(lambda: not one.host.get_network().get_connections(other.host.get_id()), "it is closed")
            book._members = before
            await until_talks(other, one)

    run_trio(main)


async def until_talks(a: Member, b: Member) -> None:
    with trio.fail_after(10):
        while True:
            try:
                assert await talk(a.host, b.host) == b"hello"
            except (Refused, StreamFailure):
                await trio.sleep(0.1)
            else:
                return


def test_a_peer_that_has_forgotten_is_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took us off its list for a moment: to us nothing has changed, and its `not supported` says it all."""
    monkeypatch.setattr(gate_module, "RETRY_S", 0.2)
    one_key, other_key = new_key(), new_key()

    async def main() -> None:
        book = list_book(one_key, other_key)
        async with member(book, key=one_key) as one, member(book, key=other_key) as other:
            assert await talk(other.host, one.host) == b"hello"
            (connection,) = one.host.get_network().get_connections(other.host.get_id())
            one.gate._of(connection.muxed_conn).names = frozenset()
            await until_talks(other, one)

    run_trio(main)


@pytest.mark.parametrize("is_open", [False, True])
def test_a_connection_that_shows_nothing_is_closed(is_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "PROVE_WITHIN_S", 1.0)
    monkeypatch.setattr(gate_module, "LOOK_INTERVAL_S", 0.05)

    async def main() -> None:
        books: list[Any] = [secret_book(), "main"] if is_open else [secret_book()]
        async with member(*books) as inside, dialling_host() as outside, member(listens=False) as friend:
            assert await talk(friend.host, inside.host) == b"hello"
            await connect(outside, inside.host)
            began = trio.current_time()
            if is_open:
                await trio.sleep(2)
                assert inside.host.get_network().get_connections(outside.get_id())
                assert await force(outside, inside.host) == b"hello"
            else:
                await until(lambda: not inside.host.get_network().get_connections(outside.get_id()), "it is closed")
                assert trio.current_time() - began >= 0.9
            assert inside.host.get_network().get_connections(friend.host.get_id())

    run_trio(main)


def test_a_node_in_an_open_and_a_closed_network_keeps_them_apart() -> None:
    async def main() -> None:
        async with (
            member(secret_book(), "main") as both,
            member(listens=True) as closed,
            dialling_host() as anybody,
        ):
            dhts = {name: Dht(both.host, both.own[name].scope, serve=True) for name in ("lab", "main")}
            both.gate.belongs(dhts["lab"].protocol, "lab")
            theirs = Dht(closed.host, closed.own["lab"].scope, serve=True)
            closed.gate.belongs(theirs.protocol, "lab")
            async with trio.open_nursery() as nursery:
                for dht in (*dhts.values(), theirs):
                    nursery.start_soon(dht.run)
                assert await theirs.join([contact(both.host)]) == 1
                await until(lambda: dhts["lab"].size == 1, "both know one another in the closed network")
                assert dhts["main"].size == 0

                # Whoever is in the open network asks for a peer of the closed one by its id: the host knows its
                # addresses, and says nothing.
                query = KadQuery(anybody, dhts["main"].protocol)
                answer = await query.find_node(contact(both.host), closed.host.get_id().to_bytes())
                assert answer.closer == ()
                with pytest.raises(StreamFailure):
                    await KadQuery(anybody, dhts["lab"].protocol).find_node(contact(both.host), b"x" * 38)
                assert dhts["lab"].protocol not in await listed(anybody, both.host)
                assert dhts["lab"].protocol not in await told_by_identify(anybody, both.host)
                nursery.cancel_scope.cancel()

    run_trio(main)


def test_what_is_sold_to_members_alone() -> None:
    async def main() -> None:
        async with member(secret_book(), "main") as seller, member(listens=False) as friend:
            seller.gate.serve_only(ECHO, frozenset({"lab"}))
            async with dialling_host() as anybody:
                with pytest.raises(StreamFailure):
                    await force(anybody, seller.host)
                assert ECHO not in await listed(anybody, seller.host)
            assert await talk(friend.host, seller.host) == b"hello"

    run_trio(main)


def test_a_peer_that_was_found_in_an_open_network_is_told_of_no_other() -> None:
    async def main() -> None:
        async with listening_host() as anybody, member(secret_book(), "main") as both:
            called: list[Any] = []
            anybody.set_stream_handler(PROTOCOL, called.append)
            both.own.note_found(str(anybody.get_id()), ["main"])
            assert await talk(both.host, anybody) == b"hello"
            assert not called
            # One that was found in both, or nobody knows where, is asked; an open network needs no answer.
            both.own.note_found(str(anybody.get_id()), ["main", "lab"])
            anybody.remove_stream_handler(PROTOCOL)
            assert await talk(both.host, anybody) == b"hello"
            both.own.note_found(str(anybody.get_id()), ["lab"])
            with pytest.raises(Refused):
                await talk(both.host, anybody)

    run_trio(main)


def test_peers_of_the_open_dht_are_told_of_no_other() -> None:
    async def main() -> None:
        async with listening_host() as anybody, member(secret_book(), "main", listens=False) as both:
            called: list[Any] = []
            anybody.set_stream_handler(PROTOCOL, called.append)
            theirs = Dht(anybody, "main", serve=True)
            theirs.server.start(None)
            ours = OneNetwork(both.own["main"], both.peer_id, serve=False, standing_keys=tuple)
            ours.begin(both.host, both.gate)
            assert await ours.dht.join([contact(anybody)]) == 1
            assert theirs.size == 0 and not called

    run_trio(main)


def test_one_connection_shows_one_thing_at_a_time() -> None:
    async def main() -> None:
        async with member() as inside, dialling_host() as idler, member(listens=False) as friend:
            connection = await connect(idler, inside.host)
            first = await negotiate_on(idler, connection, PROTOCOL)
            assert len(await first.read(32)) == 32
            with pytest.raises((IOException, MuxedStreamError, StreamFailure)):
                second = await negotiate_on(idler, connection, PROTOCOL)
                assert await second.read(32) == b""
            assert await talk(friend.host, inside.host) == b"hello"

    run_trio(main)


def test_whoever_asks_too_often_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MAX_TAKEN_PER_MINUTE", 3)

    async def main() -> None:
        async with member() as inside, dialling_host() as outside:
            connection = await connect(outside, inside.host)
            for _ in range(3):
                stream = await negotiate_on(outside, connection, PROTOCOL)
                assert len(await stream.read(32)) == 32
                await stream.reset()
                await until(lambda: not inside.gate._limiter.borrowed_tokens, "it is over")
            with pytest.raises((IOException, MuxedStreamError, StreamFailure)):
                stream = await negotiate_on(outside, connection, PROTOCOL)
                assert await stream.read(32) == b""
            async with member(listens=False) as friend:
                assert await talk(friend.host, inside.host) == b"hello"

    run_trio(main)


def test_names_of_networks_are_told_apart() -> None:
    own = networks(secret_book(), "main", sells=lambda name: name == "lab")
    assert (own.names, own.closed, own.open, own.selling) == (("lab", "main"), {"lab"}, {"main"}, {"lab"})
    assert own.found_in("12D3KooW...") == {"lab", "main"}
    assert parse_peer_id(new_key().public_key.peer_id)
