"""A provider that sells over libp2p, and a buyer, in the process of the test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pgrid.client.client import Client
from p2pgrid.config import ClientConfig, Config, ModelConfig, ProviderConfig, TermsConfig
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.network import Network
from p2pgrid.net.road import Road
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.record import Role
from p2pgrid.proto.verdict import audit_records
from p2pgrid.provider.engine_plan import plan_engines
from p2pgrid.provider.node import Provider
from tests.grid.conftest import MODEL, until

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 64}


def config(url: str, **fields: Any) -> Config:
    """Of a provider that listens over libp2p alone; `fields` are others of `[provider]`."""
    model = ModelConfig(name=MODEL, engine_url=url, price_input_eur="0.20", price_output_eur="0.80")
    settings = {
        "operator": "Behind NAT",
        "listen": "",
        "libp2p_listen": (LOOPBACK,),
        "drain_s": 2,
        "terms": TermsConfig(window_tokens=16),
        "models": (model,),
        **fields,
    }
    return Config(network="test", provider=ProviderConfig(**settings))


def folder(path: Path) -> DataFolder:
    """With a key in it."""
    data = DataFolder(path)
    data.make()
    create_key(data.key_file)
    return data


@dataclass
class Market:
    """A provider, a buyer, and where each keeps its books."""

    provider: Provider
    client: Client
    sold: DataFolder
    bought: DataFolder

    @property
    def road(self) -> Road | None:
        session = self.client.purchaser.sessions.get(self.provider.peer_id)
        return session.link.road if session is not None and session.link is not None else None

    async def settled(self, n: int) -> None:
        """Wait until so many requests stand on receipts that both have signed, in the client's ledger."""

        async def count() -> int:
            rows = self.client.purchaser.ledger.receipts()
            return sum(len(row.receipt.requests) or 1 for row in rows if row.countersigned)

        await until(count, n)

    def audit(self) -> Any:
        """The verdict on both ledgers, which nobody has open any more."""
        bundles = []
        for data, side in ((self.bought, Role.CLIENT), (self.sold, Role.PROVIDER)):
            with SqliteLedger.open_readonly(data.ledger_file) as ledger:
                bundles.append(Bundle(side, list(enumerate(ledger.records(), 1)), side))
        return audit_records(bundles)


@contextlib.asynccontextmanager
async def open_market(
    tmp_path: Path, introducer: Network, *, buys: ClientConfig | None = None, **fields: Any
) -> AsyncIterator[Market]:
    """Once the offer is known. `fields` are the provider's, `buys` is how the client is set."""
    sold, bought = folder(tmp_path / "provider"), folder(tmp_path / "client")
    async with (
        serve_fake(FakeVllm(models=(MODEL,))) as url,
        Provider(
            sold,
            config(url, **fields),
            make_engines=plan_engines,
            network_name="test",
            bootstrap=introducer.addresses,
        ) as provider,
        Client(bought, network="test", bootstrap=introducer.addresses, config=buys or ClientConfig()) as client,
    ):
        await client.wait_for_offer(MODEL, 20)
        yield Market(provider, client, sold, bought)
