"""The node as a whole: what it needs, the order in which it starts and stops, what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.config import Config, ModelConfig, ProviderConfig, TermsConfig
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.errors import EngineError, LedgerError, LocalError, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Offer, Status, Tariff
from p2pgrid.proto.record import Role, parse_json_line, parse_record, verify_record
from p2pgrid.provider.advertising import advertised_keys
from p2pgrid.provider.engine_plan import plan_engines
from p2pgrid.provider.node import Provider
from p2pgrid.provider.pages import serve_pages
from tests.factories import secret_key
from tests.provider.rig import TRUST_PICO, Buyer, Clock, Rig, until


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "node")
    folder.make()
    create_key(folder.key_file)
    return folder


def config(url: str, **fields: Any) -> Config:
    model = ModelConfig(name="fake", engine_url=url, price_input_eur="0.20", price_output_eur="0.80")
    settings = {
        "operator": "Test",
        "listen": "127.0.0.1:0",
        "libp2p_listen": ("/ip4/127.0.0.1/tcp/0",),
        "engine_timeout_s": 1,
        "drain_s": 5,
        "terms": TermsConfig(window_tokens=16),
        "models": (model,),
        **fields,
    }
    return Config(network="test", provider=ProviderConfig(**settings))


def node(data: DataFolder, settings: Config, *, join_network: bool = False, bootstrap: Sequence[str] = ()) -> Provider:
    return Provider(
        data,
        settings,
        make_engines=plan_engines,
        network_name="test",
        bootstrap=bootstrap,
        join_network=join_network,
        gpus=["NVIDIA H100"],
    )


@contextlib.asynccontextmanager
async def running(data: DataFolder, **fields: Any) -> AsyncIterator[tuple[Provider, Rig]]:
    """A node with a fake engine; the rig gives a `Buyer` what it needs."""
    fake = FakeVllm()
    async with serve_fake(fake) as url, node(data, config(url, **fields)) as provider:
        assert provider.offer is not None
        host, port = provider.offer.message.addresses[0].split("/")[2:5:2]
        rig = Rig(None, provider.engines, fake.state, (host, int(port)), provider.offer, Clock())  # type: ignore[arg-type]
        yield provider, rig


async def buyer_of(provider: Provider, rig: Rig) -> Buyer:
    buyer = await Buyer.connect(rig, provider=provider.key.public_key)
    buyer.cover(provider.channels, TRUST_PICO)
    return buyer


async def test_a_node_sells_and_remembers(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        receipt = await buyer.order(max_tokens=20).send().to_end()
        assert receipt.status is Status.COMPLETED
        assert rig.offer.message.gpus == ("NVIDIA H100",)
    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        (row,) = ledger.receipts()
        assert (row.receipt, row.countersigned) == (receipt, True)
    async with running(data) as (provider, rig):
        buyer.provider = provider.key.public_key
        await buyer.reconnect(rig)
        assert (await buyer.resume())[1] == []
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 2


async def test_a_stopping_node_lets_orders_finish_and_takes_no_new_ones(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        await buyer.order(max_tokens=4).send().to_end()
        placed = buyer.order(max_tokens=60, fake={"tokens": 60, "pace_ms": 5}).send()
        await placed.until(lambda: placed.answer)
        stopping = asyncio.create_task(provider.__aexit__(None, None, None))
        await until(lambda: provider.is_draining)
        assert provider.offer is None
        assert (await buyer.order(max_tokens=4).send().refused()).code == "withdrawn"
        assert (await placed.to_end()).status is Status.COMPLETED
        await stopping


async def test_a_stopping_node_waits_no_longer_than_it_was_told(data: DataFolder) -> None:
    async with running(data, drain_s=0) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        await placed.until(lambda: placed.answer)
        stopping = asyncio.create_task(provider.__aexit__(None, None, None))
        receipt = await placed.to_end()
        assert (receipt.status, receipt.amount_pico) == (Status.FAILED, 0)
        await stopping
        await until(lambda: rig.fake.running == 0)


async def test_a_cancelled_stop_hurries_and_the_order_is_interrupted_after_the_restart(data: DataFolder) -> None:
    async with running(data, drain_s=60) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        await placed.until(lambda: placed.answer)
        stopping = asyncio.create_task(provider.__aexit__(None, None, None))
        await until(lambda: provider.is_draining)
        stopping.cancel()
        await asyncio.wait({stopping}, timeout=10)
        assert stopping.cancelled()
        await placed.cut()
    async with running(data) as (provider, rig):
        await buyer.reconnect(rig)
        _, (receipt,) = await buyer.resume(sign=False)
        assert receipt.message.status is Status.INTERRUPTED


async def test_what_a_node_cannot_do_without_is_said_with_the_next_step(data: DataFolder) -> None:
    with pytest.raises(UsageError, match="no model is configured") as no_model:
        node(data, config("http://127.0.0.1:1", models=()))
    assert "config.toml" in no_model.value.hint
    data.key_file.chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        node(data, config("http://127.0.0.1:1"))
    data.key_file.unlink()
    with pytest.raises(UsageError, match="no key") as no_key:
        node(data, config("http://127.0.0.1:1"))
    assert "p2pgrid init" in no_key.value.hint


async def test_a_taken_port_is_found_before_the_engine_is_waited_for(data: DataFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match="cannot listen") as caught:
            await node(data, config("http://127.0.0.1:1", listen=f"127.0.0.1:{port}", engine_timeout_s=60)).__aenter__()
        assert "another port" in caught.value.hint


async def test_an_absent_engine_and_a_ledger_in_use_are_errors_that_leave_nothing_behind(data: DataFolder) -> None:
    with pytest.raises(EngineError, match="not ready"):
        await node(data, config("http://127.0.0.1:1", engine_timeout_s=1)).__aenter__()
    ledger = SqliteLedger.open(data.ledger_file)
    with pytest.raises(LedgerError, match="open in another process"):
        await node(data, config("http://127.0.0.1:1")).__aenter__()
    await ledger.aclose()
    async with running(data) as (provider, _):
        assert provider.offer is not None


async def test_the_pages_tell_how_the_node_fares(data: DataFolder) -> None:
    async with running(data) as (provider, rig), serve_pages(provider, "127.0.0.1", 0) as url:
        buyer = await buyer_of(provider, rig)
        receipt = await buyer.order(max_tokens=20).send().to_end()
        await until(lambda: provider.tally.earned_pico)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/offer") as response:
                record = parse_json_line(await response.read())
            offer = verify_record(record, Offer, {Role.PROVIDER: provider.key.public_key})
            assert offer.id == rig.offer.id
            async with session.get(f"{url}/health") as response:
                health = await response.json()
            assert (response.status, health["status"], health["open_orders"]) == (200, "ok", 0)
            async with session.get(f"{url}/metrics") as response:
                lines = (await response.text()).splitlines()
            assert 'p2pgrid_orders_settled_total{status="completed"} 1' in lines
            assert f"p2pgrid_earned_pico_eur_total {receipt.amount_pico}" in lines
            assert 'p2pgrid_engine_up{model="fake"} 1' in lines
            provider.engines.models["fake"].is_up = False
            async with session.get(f"{url}/health") as response:
                assert (response.status, (await response.json())["status"]) == (503, "degraded")


async def test_the_network_finds_the_node_and_gets_its_offer(data: DataFolder) -> None:
    introducer = Network(secret_key("introducer"), "test", listen=["/ip4/127.0.0.1/tcp/0"], serve_dht=True)
    client_key = secret_key("dht client")
    async with (
        introducer,
        serve_fake(FakeVllm()) as url,
        node(data, config(url, country="DE"), join_network=True, bootstrap=introducer.addresses) as provider,
        Network(client_key, "test", bootstrap=introducer.addresses) as client,
    ):
        assert provider.offer is not None
        for key in ("provider", "country/DE", "model/fake", "model/fake@DE"):
            (found,) = await client.find_providers(key, timeout_s=5)
            assert found.peer_id == provider.peer_id
        record = parse_record(await client.fetch_offer(found, timeout_s=5))
        offer = verify_record(record, Offer, {Role.PROVIDER: parse_public_key(provider.key.public_key.raw)})
        assert offer.id == provider.offer.id
        assert isinstance(found, PeerAddress)


def test_keys_name_country_and_models() -> None:
    tariff = Tariff(input_upm=1, cached_input_upm=1, output_upm=1)
    entry = ModelOffer(model="m", tariff=tariff, context_tokens=64, concurrency=1, endpoints=ENDPOINTS)
    assert advertised_keys([entry], "LT") == ["provider", "country/LT", "model/m", "model/m@LT"]


async def test_prices_change_while_the_node_runs_and_what_was_shown_is_honoured(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        assert (await provider.reprice()).models == (), "config.toml says nothing of this model"

        def priced(output: str, cached: str = "0.10") -> None:
            data.config_file.write_text(
                "[[provider.models]]\n"
                'name = "fake"\nengine-url = "http://127.0.0.1:1"\n'
                f'price-input-eur = "0.20"\nprice-cached-input-eur = "{cached}"\nprice-output-eur = "{output}"\n'
                '[[provider.models]]\nname = "not sold"\nengine-url = "http://127.0.0.1:2"\n'
                'price-input-eur = "1"\nprice-output-eur = "1"\n'
            )

        priced("0.90")
        done = await provider.reprice()
        assert provider.offer is not None and provider.offer.id != rig.offer.id
        assert (done.models, done.sequence) == (("fake",), provider.offer.message.sequence)
        assert provider.offer.message.models[0].tariff == Tariff(
            input_upm=200_000, cached_input_upm=100_000, output_upm=900_000
        )
        receipt = await buyer.order(max_tokens=4).send().to_end()
        assert receipt.offer == rig.offer.id, "the offer before is honoured"
        priced("0.95", cached="0.30")
        with pytest.raises(UsageError, match="cached input costs more"):
            await provider.reprice()
        assert provider.offer.message.sequence == done.sequence
        priced("0.90")
        assert (await provider.reprice()).models == ()
        await until(lambda: rig.fake.running == 0)
    with pytest.raises(UsageError, match="stopping"):
        await provider.reprice()


async def test_a_node_that_has_not_started_changes_no_prices(data: DataFolder) -> None:
    with pytest.raises(UsageError, match="starting"):
        await node(data, config("http://127.0.0.1:1")).reprice()
