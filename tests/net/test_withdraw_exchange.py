"""Leaving: the peers that hold a provider's records forget them, when it says so itself, and for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import uvloop
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.exceptions import StreamError

from p2pgrid.clock import unix_ms
from p2pgrid.net import lookup_keys
from p2pgrid.net.host import open_host
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.network import Network
from p2pgrid.net.withdraw_exchange import (
    ANSWER_TIMEOUT_S,
    MAX_WITHDRAWAL_BYTES,
    PROTOCOL,
    serve_withdrawals,
    tell_withdrawal,
)
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Record, Role, sign_message
from p2pgrid.proto.withdrawal import Withdrawal
from tests.factories import make_offer
from tests.net.trio_hosts import connect, contact, echo, listening_host, new_key, run_trio, until


def withdrawal(key: SecretKey, *, by: SecretKey | None = None, **changes: Any) -> bytes:
    fields = {"provider": key.public_key.raw, "sequence": 2, "withdrawn_ms": unix_ms(), **changes}
    return sign_message(Withdrawal(**fields), Role.PROVIDER, by or key).record.to_bytes()


@asynccontextmanager
async def holder(forgotten: list[str]) -> AsyncIterator[BasicHost]:
    async with listening_host() as host:
        serve_withdrawals(host, forgotten.append)
        yield host


@asynccontextmanager
async def leaving() -> AsyncIterator[tuple[BasicHost, SecretKey]]:
    key = new_key()
    async with open_host(key, []) as host:
        yield host, key


def with_holder(test: Callable[[BasicHost, list[str], BasicHost, SecretKey], Awaitable[None]]) -> None:
    async def main() -> None:
        forgotten: list[str] = []
        async with holder(forgotten) as server, leaving() as (host, key):
            await test(server, forgotten, host, key)
            await echo(host, server)

    run_trio(main)


def test_a_holder_forgets_and_the_connection_is_not_kept() -> None:
    async def test(server: BasicHost, forgotten: list[str], host: BasicHost, key: SecretKey) -> None:
        assert await tell_withdrawal(host, [contact(server)], withdrawal(key), 5) == 1
        assert forgotten == [key.public_key.peer_id]
        await until(lambda: not host.get_network().get_connections(), "the connection is not kept")

    with_holder(test)


def altered(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    ("case", "make"),
    [
        ("another's, shown again by who is not it", lambda key: withdrawal(new_key())),
        ("in another's name", lambda key: withdrawal(new_key(), by=key)),
        ("in the own name by another's key", lambda key: withdrawal(key, by=new_key())),
        ("a signature that does not fit", lambda key: altered(withdrawal(key))),
        ("an hour ahead", lambda key: withdrawal(key, withdrawn_ms=unix_ms() + 3_600_000)),
        ("an offer", lambda key: make_offer(key).record.to_bytes()),
        ("no signature", lambda key: Record(Withdrawal.payload_type, b"", ()).to_bytes()),
        ("nothing", lambda key: b""),
        ("too long", lambda key: bytes(MAX_WITHDRAWAL_BYTES + 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_withdrawal_of_who_shows_it(case: str, make: Callable[[SecretKey], bytes]) -> None:
    async def test(server: BasicHost, forgotten: list[str], host: BasicHost, key: SecretKey) -> None:
        assert await tell_withdrawal(host, [contact(server)], make(key), 5) == 0
        assert forgotten == []

    with_holder(test)


def test_holders_that_are_away_or_silent_hold_nobody_up() -> None:
    async def main() -> None:
        async def silent(stream: Any) -> None:
            await trio.sleep_forever()

        async def says_no(stream: Any) -> None:
            await stream.write(b"\x00")
            await stream.close()

        forgotten: list[str] = []
        async with (
            holder(forgotten) as good,
            listening_host() as mute,
            listening_host() as naysayer,
            listening_host() as stranger,
            leaving() as (host, key),
        ):
            mute.set_stream_handler(PROTOCOL, silent)
            naysayer.set_stream_handler(PROTOCOL, says_no)
            async with listening_host() as gone:
                away = contact(gone)
            holders = [
                contact(mute),
                contact(naysayer),
                contact(stranger),
                away,
                Contact(away.peer_id, ()),
                contact(good),
            ]
            before = trio.current_time()
            assert await tell_withdrawal(host, holders, withdrawal(key), 1) == 1
            assert trio.current_time() - before < 8  # the next longer time is that of a stream, which has 10 s to open
            assert forgotten == [key.public_key.peer_id]

    run_trio(main)


def test_an_idle_stream_is_cut_and_a_peer_has_one_at_a_time() -> None:
    async def test(server: BasicHost, forgotten: list[str], host: BasicHost, key: SecretKey) -> None:
        await connect(host, server)
        idle = await host.new_stream(server.get_id(), [PROTOCOL])
        assert await tell_withdrawal(host, [contact(server)], withdrawal(key), 5) == 0, "there is no room"
        with pytest.raises(StreamError), trio.fail_after(ANSWER_TIMEOUT_S + 2):
            await idle.read(1)
        assert await tell_withdrawal(host, [contact(server)], withdrawal(key), 5) == 1

    with_holder(test)


LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MODEL = lookup_keys.model_key("qwen3-8b", "DE")


def test_who_has_left_is_found_by_nobody_and_is_found_again_when_it_is_back() -> None:
    uvloop.run(_who_has_left())


async def _who_has_left() -> None:
    async with Network(SecretKey(bytes(31) + b"i"), "test", listen=[LOOPBACK], serve_dht=True) as introducer:
        options: dict[str, Any] = {"listen": [LOOPBACK], "serve_dht": True, "bootstrap": introducer.addresses}
        key = SecretKey(bytes(31) + b"p")
        async with (
            Network(SecretKey(bytes(31) + b"o"), "test", **options),
            Network(key, "test", **options) as provider,
            Network(SecretKey(bytes(31) + b"c"), "test", bootstrap=introducer.addresses) as client,
        ):
            async with asyncio.timeout(15):
                # Until both servers are known. Another announcement may be under way when the provider leaves.
                while await provider.advertise([lookup_keys.PROVIDER, MODEL]) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert [p.peer_id for p in await client.find_providers(MODEL, timeout_s=30)] == [provider.peer_id]
            assert await provider.withdraw(withdrawal(key)) == 2
            for name in (lookup_keys.PROVIDER, MODEL):
                assert await client.find_providers(name, timeout_s=30) == []
            assert await provider.withdraw(withdrawal(key)) == 0, "there is nobody left to tell"
            assert await provider.advertise([MODEL]) == 2
            assert [p.peer_id for p in await client.find_providers(MODEL, timeout_s=30)] == [provider.peer_id]
