"""The face that the rest of the project sees: asyncio on uvloop, real hosts on loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import uvloop

from p2pgrid.errors import LocalError, Refused, Unreachable, UsageError
from p2pgrid.net import lookup_keys
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.keys import SecretKey
from tests.ports import reserved_port

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MODEL = lookup_keys.model_key("qwen3-8b", "DE")
NOBODY = f"/ip4/127.0.0.1/tcp/1/p2p/{SecretKey(bytes(32)).public_key.peer_id}"


def new_key() -> SecretKey:
    return SecretKey(os.urandom(32))


def bootstrap_peer() -> Network:
    return Network(new_key(), "test", listen=[LOOPBACK], serve_dht=True)


async def until(condition: Callable[[], Any], what: str, deadline_s: float = 15.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not in {deadline_s} s: {what}"
        await asyncio.sleep(0.01)


def test_provider_client_and_bootstrap_peer() -> None:
    uvloop.run(_provider_client_and_bootstrap_peer())


async def _provider_client_and_bootstrap_peer() -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    loop_threads = set()
    offer: bytes | None = b"a signed offer"

    def current_offer() -> bytes | None:
        loop_threads.add(asyncio.get_running_loop())
        return offer

    async with bootstrap_peer() as introducer:
        assert introducer.addresses[0].endswith(f"/p2p/{introducer.peer_id}")
        options: dict[str, Any] = {"bootstrap": introducer.addresses}
        async with (
            Network(
                new_key(),
                "test",
                listen=[LOOPBACK],
                serve_dht=True,
                offer=current_offer,
                cards=lambda: b"signed cards",
                **options,
            ) as provider,
            Network(new_key(), "test", **options) as client,
        ):
            assert await provider.advertise([lookup_keys.PROVIDER, MODEL]) >= 1
            (found,) = await client.find_providers(MODEL, timeout_s=30)
            assert found == PeerAddress(provider.peer_id, provider.addresses, ("test",))
            assert await client.fetch_offer(found, timeout_s=30) == b"a signed offer"
            assert await client.fetch_cards(found, timeout_s=30) == b"signed cards"
            with pytest.raises(Refused, match="no card") as refused:
                await client.fetch_cards(PeerAddress(introducer.peer_id, introducer.addresses), timeout_s=30)
            assert refused.value.code == "no-card"
            assert loop_threads == {asyncio.get_running_loop()}, "the offer is asked for on the loop"
            offer = None
            with pytest.raises(Refused) as caught:
                await client.fetch_offer(found, timeout_s=30)
            assert caught.value.code == "no-offer"
            with pytest.raises(Refused):
                await client.fetch_offer(PeerAddress(introducer.peer_id, introducer.addresses), timeout_s=30)
            assert await client.find_providers("country/DE", timeout_s=30) == []
            health = client.health()
            assert health.running
            assert health.bootstrap_reached
            assert health.routing_table_size == 2
            assert health.restarts == 0
            assert provider.health().advertised_keys == 2

            assert await provider.advertise(["country/DE"]) >= 1
            assert [p.peer_id for p in await client.find_providers("country/DE", timeout_s=30)] == [provider.peer_id]
            await provider.withdraw()
            assert provider.health().advertised_keys == 0
        assert introducer.health().bootstrap_reached is None
        assert introducer.health().running
    assert not introducer.health().running


async def test_an_offer_that_fails_is_reported_here_and_unreachable_there(caplog: pytest.LogCaptureFixture) -> None:
    def broken_offer() -> bytes:
        raise RuntimeError("the tariff cannot be read")

    async with (
        Network(new_key(), "test", listen=[LOOPBACK], offer=broken_offer) as provider,
        Network(new_key(), "test") as client,
    ):
        with pytest.raises(Unreachable):
            await client.fetch_offer(PeerAddress(provider.peer_id, provider.addresses), timeout_s=30)
        assert provider.health().running
    assert "the tariff cannot be read" in caplog.text


async def test_a_crash_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """The host comes back on the same port, joined and advertised; asyncio notices nothing but a log line."""

    async def crash() -> None:
        async def fault() -> None:
            raise RuntimeError("a crash on purpose")

        trio.lowlevel.spawn_system_task(fault)
        await trio.sleep_forever()

    async with bootstrap_peer() as introducer:
        options: dict[str, Any] = {"bootstrap": introducer.addresses, "offer": lambda: b"offer"}
        async with Network(new_key(), "test", listen=[LOOPBACK], serve_dht=True, **options) as provider:
            await provider.advertise([MODEL])
            before = provider.addresses
            with pytest.raises(LocalError, match="stopped during the call"):
                await provider._thread.call(crash)
            await until(lambda: provider.health().restarts == 1 and provider.health().bootstrap_reached, "it is back")
            assert provider.addresses == before
            await until(lambda: provider._service.parts[0]._held.get(MODEL), "it is advertised again")
            async with Network(new_key(), "test", bootstrap=introducer.addresses) as client:
                (found,) = await client.find_providers(MODEL, timeout_s=30)
                assert await client.fetch_offer(found, timeout_s=30) == b"offer"
    assert "crashed and starts again" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of coroutines that trio left behind
async def test_a_host_that_was_cut_off_leaves_its_port_to_the_next() -> None:
    """Trio itself fails, so that no `finally` of the host runs, and its sockets stay open."""

    async def fail() -> None:
        trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines = None  # type: ignore[attr-defined]
        await trio.sleep_forever()

    async with Network(new_key(), "test", listen=[LOOPBACK], offer=lambda: b"offer") as provider:
        before = provider.addresses
        with pytest.raises(LocalError, match="stopped during the call"):
            await provider._thread.call(fail)
        await until(lambda: provider.health().restarts and provider.health().running, "it is back")
        assert provider.health().restarts == 1
        assert provider.addresses == before
        async with Network(new_key(), "test") as client:
            assert await client.fetch_offer(PeerAddress(provider.peer_id, before), timeout_s=30) == b"offer"


async def test_an_absent_bootstrap_peer_is_said_once_and_tried_on(caplog: pytest.LogCaptureFixture) -> None:
    key = new_key()
    with reserved_port() as port, caplog.at_level(logging.INFO, logger="p2pgrid"):
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{key.public_key.peer_id}"
        async with Network(new_key(), "test", bootstrap=[address, NOBODY]) as client:
            await until(lambda: "no bootstrap peer" in caplog.text, "it is said")
            assert client.health().bootstrap_reached is False
            with pytest.raises(Unreachable, match=r"bootstrap peer of the network 'test' answered in 0\.1 s") as caught:
                await client.find_providers(MODEL, timeout_s=0.1)
            assert address in caught.value.message
            assert await client.advertise([MODEL], timeout_s=0.1) == 0
            async with Network(key, "test", listen=[f"/ip4/127.0.0.1/tcp/{port}"], serve_dht=True):
                await until(lambda: client.health().bootstrap_reached, "it is reached in the end")
    said = [r for r in caplog.records if "no bootstrap peer" in r.getMessage()]
    assert len(said) == 1
    assert address in said[0].getMessage()
    assert NOBODY in said[0].getMessage()
    assert "answers again" in caplog.text


async def test_a_port_in_use_is_named() -> None:
    async with bootstrap_peer() as first:
        listen = first.addresses[0].rsplit("/p2p/", 1)[0]
        with pytest.raises(LocalError, match=f"port {listen.rsplit('/', 1)[1]} .*in use"):
            async with Network(new_key(), "test", listen=[listen]):
                pass
        assert first.health().running


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Test", {}),
        ("test", {"listen": ["0.0.0.0:4001"]}),
        ("test", {"bootstrap": ["/ip4/192.0.2.1/tcp/4001"]}),
        ("test", {"announce": ["/ip4/0.0.0.0/tcp/4001"]}),
        ("test", {"serve_dht": True}),
    ],
)
async def test_bad_settings_are_the_users_to_mend(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Network(new_key(), name, **options)
    assert caught.value.hint


async def test_bad_keys_and_peers_are_refused() -> None:
    async with Network(new_key(), "test") as client:
        with pytest.raises(UsageError):
            await client.advertise([""])
        with pytest.raises(UsageError):
            await client.find_providers("x" * 1000)
        with pytest.raises(UsageError):
            await client.fetch_offer(PeerAddress("nobody", ()))
        with pytest.raises(Unreachable):
            await client.fetch_offer(PeerAddress(new_key().public_key.peer_id, ("/ip4/127.0.0.1/tcp/1",)), timeout_s=3)


async def test_what_is_announced_is_what_others_are_told() -> None:
    announce = "/dns4/provider.example.org/tcp/4001"
    async with bootstrap_peer() as introducer:
        options: dict[str, Any] = {"bootstrap": introducer.addresses, "announce": [announce]}
        async with (
            Network(new_key(), "test", listen=[LOOPBACK], **options) as provider,
            Network(new_key(), "test", bootstrap=introducer.addresses) as client,
        ):
            await provider.advertise([MODEL])
            (found,) = await client.find_providers(MODEL, timeout_s=30)
            assert found.addresses == provider.addresses == (f"{announce}/p2p/{provider.peer_id}",)


async def test_cancelling_a_call_leaves_the_network_whole() -> None:
    async with Network(new_key(), "test", bootstrap=[NOBODY]) as client:
        call = asyncio.create_task(client.find_providers(MODEL, timeout_s=30))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert client.health().running


async def test_ones_own_bootstrap_address_is_left_out() -> None:
    key = new_key()
    own = f"/ip4/127.0.0.1/tcp/1/p2p/{key.public_key.peer_id}"
    async with Network(key, "test", listen=[LOOPBACK], bootstrap=[own], serve_dht=True) as net:
        assert net.health().bootstrap_reached is None
        assert await net.advertise([MODEL]) == 0
