"""Members that come and go while their nodes run: sales between them, links that end, what is billed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.client import Client
from p2pgrid.config import ClientConfig, Config, ModelConfig, NetworkEntry, ProviderConfig, TermsConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.errors import Refused, RemoteError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.network import Network
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.road import Road
from p2pgrid.networks.entries import known_entries, own_networks
from p2pgrid.networks.store import NetworkStore
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.closed_network import Kind
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import audit_records
from p2pgrid.provider.engine_plan import plan_engines
from p2pgrid.provider.node import Provider
from tests.grid.conftest import MODEL, until

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 1500}
ROADS = [Road.DIRECT, Road.LIBP2P, Road.RELAYED, Road.PUNCHED]


def folder(path: Path) -> DataFolder:
    data = DataFolder(path)
    data.load_or_create_key()
    return data


def store(data: DataFolder) -> NetworkStore:
    return NetworkStore(data, Config())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def entry_of(data: DataFolder, bootstrap: tuple[str, ...]) -> NetworkEntry:
    """The one network that the data folder is in."""
    (entry,) = known_entries(data, Config()).values()
    return NetworkEntry(**{f: getattr(entry, f) for f in entry.__struct_fields__} | {"bootstrap": bootstrap})


def config(url: str, road: Road, relay: tuple[str, ...]) -> Config:
    model = ModelConfig(name=MODEL, engine_url=url, price_input_eur="0.20", price_output_eur="0.80")
    settings: dict[str, Any] = {
        "operator": "Vilnius",
        "listen": "127.0.0.1:0" if road is Road.DIRECT else "",
        "libp2p_listen": (LOOPBACK,),
        "relay_through": relay if road in (Road.RELAYED, Road.PUNCHED) else ("never",),
        "drain_s": 2,
        "terms": TermsConfig(window_tokens=16),
        "models": (model,),
    }
    return Config(provider=ProviderConfig(**settings))


@dataclass
class Lab:
    provider: Provider
    client: Client
    sold: DataFolder
    bought: DataFolder
    introducer: DataFolder

    def receipts(self) -> list[Any]:
        return list(self.client.purchaser.ledger.receipts())

    async def buy(self, tokens: int = 5) -> None:
        async with await self.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": tokens}}) as answer:
            async for _ in answer:
                pass

    async def can_buy(self) -> bool:
        try:
            await self.buy()
        except RemoteError:
            return False
        return True

    async def n_links(self) -> int:
        return sum(self.provider.links_by_road.values())

    def audit(self) -> Any:
        bundles = []
        for data, side in ((self.bought, Role.CLIENT), (self.sold, Role.PROVIDER)):
            with SqliteLedger.open_readonly(data.ledger_file) as ledger:
                bundles.append(Bundle(side, list(enumerate(ledger.records(), 1)), side))
        return audit_records(bundles)


@contextlib.asynccontextmanager
async def lab(tmp_path: Path, road: Road = Road.DIRECT) -> AsyncIterator[Lab]:
    """A provider and a client in the network that their data folders are in by now, and who introduces them.

    That peer relays too. Without the direct road the provider's offer names libp2p alone; with RELAYED and PUNCHED, the
    relay.
    """
    sold, bought, at_door = (folder(tmp_path / name) for name in ("provider", "client", "introducer"))
    key = at_door.load_key()
    async with Network(
        key,
        own_networks([entry_of(at_door, ())], key.public_key),
        listen=[LOOPBACK],
        serve_dht=True,
        relaying=RelayLimits(),
    ) as introducer:
        peers = introducer.addresses
        async with (
            serve_fake(FakeVllm(models=(MODEL,))) as url,
            Provider(
                sold, config(url, road, peers), make_engines=plan_engines, networks=[entry_of(sold, peers)]
            ) as provider,
            Client(
                bought, networks=[entry_of(bought, peers)], config=ClientConfig(punch=road is Road.PUNCHED)
            ) as client,
        ):
            await client.wait_for_offer(MODEL, 20)
            yield Lab(provider, client, sold, bought, at_door)


def all_on_lists(tmp_path: Path) -> None:
    """A network that lists close: each of the three has all of them on its own."""
    data = [folder(tmp_path / name) for name in ("provider", "client", "introducer")]
    for one in data:
        entry = store(one).create("lab", Kind.MEMBERS, (), now_ms(), 1)
        for other in data:
            store(one).admit_to_list(entry, other.load_key().public_key)


@pytest.mark.parametrize("road", ROADS)
async def test_who_is_taken_off_the_list_loses_its_links_and_all_is_billed(tmp_path: Path, road: Road) -> None:
    all_on_lists(tmp_path)
    async with lab(tmp_path, road) as m:
        await m.buy()
        client, entry = m.client.purchaser, store(m.sold).entry("lab")
        member = m.bought.load_key().public_key
        session = client.sessions[m.provider.peer_id]
        assert session.link is not None and session.link.member_of == {"lab"}

        async def on_its_road() -> bool:
            return session.link is not None and session.link.road is road

        await until(on_its_road, True)

        got, began = 0, 0.0
        async with await client.buy(CHAT, BODY | {"fake": {"tokens": 400, "pace_ms": 30}}) as answer:
            with contextlib.suppress(RemoteError):
                async for data in answer:
                    got += data.count(b"\n\n")
                    if got >= 40 and not began:
                        began = time.monotonic()
                        assert store(m.sold).expel(entry, member)
        assert 40 <= got < 400
        assert time.monotonic() - began < 8
        await until(m.n_links, 0)

        async def settled() -> list[str]:
            return sorted(row.receipt.status.value for row in m.receipts() if row.countersigned)

        await until(settled, [Status.COMPLETED.value, Status.INTERRUPTED.value])
        billed = [row.receipt.usage.output_tokens for row in m.receipts() if row.receipt.status is Status.INTERRUPTED]
        assert got - 2 * 16 <= billed[0] <= got
        assert not await m.can_buy()

        assert store(m.sold).admit_to_list(entry, member)
        await until(m.can_buy, True, deadline_s=60)
    verdict = m.audit()
    assert verdict.clean, verdict.findings


async def test_a_membership_that_ends_ends_the_dealings_and_a_new_one_begins_them(tmp_path: Path) -> None:
    sold, bought, at_door = (folder(tmp_path / name) for name in ("provider", "client", "introducer"))
    entry = store(sold).create("lab", Kind.GROUP_KEY, (), now_ms(), 1)

    def admit(data: DataFolder, seconds: float) -> None:
        membership = store(sold).sign(entry, data.load_key().public_key, now_ms() - int(86_400_000 - seconds * 1000), 1)
        store(data).join(store(sold).invitation(entry, (), membership))

    admit(at_door, 600)
    admit(bought, 12)
    async with lab(tmp_path) as m:
        await m.buy()
        await until(m.n_links, 0, deadline_s=20)
        assert not await m.can_buy()
        admit(bought, 600)
        await until(m.can_buy, True, deadline_s=60)
    verdict = m.audit()
    assert verdict.clean, verdict.findings


async def test_a_membership_that_is_renewed_in_time_costs_nothing(tmp_path: Path) -> None:
    """The provider goes by the newest that it was shown: an answer that runs over the end of the old one is whole."""
    sold, bought, at_door = (folder(tmp_path / name) for name in ("provider", "client", "introducer"))
    entry = store(sold).create("lab", Kind.GROUP_KEY, (), now_ms(), 1)

    def admit(data: DataFolder, seconds: float) -> int:
        membership = store(sold).sign(entry, data.load_key().public_key, now_ms() - int(86_400_000 - seconds * 1000), 1)
        store(data).join(store(sold).invitation(entry, (), membership))
        return membership.message.valid_until_ms

    admit(at_door, 600)
    until_ms = admit(bought, 14)
    async with lab(tmp_path) as m:
        await m.buy()
        left_ms = until_ms - now_ms()
        assert left_ms > 2000, "the machine is too slow for this test"
        tokens = (left_ms + 2000) // 30
        async with await m.client.purchaser.buy(CHAT, BODY | {"fake": {"tokens": tokens, "pace_ms": 30}}) as answer:
            admit(bought, 600)
            async for _ in answer:
                pass
            assert answer.usage.output_tokens == tokens
        assert now_ms() > until_ms
        await until(m.can_buy, True, deadline_s=20)
        assert {row.receipt.status for row in m.receipts()} == {Status.COMPLETED}


async def test_a_provider_that_is_taken_off_the_clients_list_sells_it_nothing_more(tmp_path: Path) -> None:
    all_on_lists(tmp_path)
    async with lab(tmp_path) as m:
        await m.buy()
        entry = store(m.bought).entry("lab")
        assert store(m.bought).expel(entry, m.sold.load_key().public_key)

        async def knows() -> int:
            return len(m.client.purchaser.book.offers()) + len(m.client.purchaser.sessions)

        await until(knows, 0)
        with pytest.raises(Refused):
            await m.buy()
        await until(m.n_links, 0)
