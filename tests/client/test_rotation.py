"""A provider's key is replaced between two sales: one operator, two channels, one chain, and an audit of both sides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from p2pgrid.cli.audit import audit
from p2pgrid.cli.card import card
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.offers import offers
from p2pgrid.cli.receipts import receipts
from p2pgrid.client.cards import CardBook
from p2pgrid.client.gateway import SHUTDOWN_S, Gateway, serve
from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.clock import unix_ms
from p2pgrid.config import Config, ModelConfig, ProviderConfig, TermsConfig
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.errors import RemoteError, Unreachable
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.net.peer_address import OnFound, PeerAddress
from p2pgrid.proto.card_chain import key_state, verify_card
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import Role, parse_json_line
from p2pgrid.proto.well_known import PATH, parse_well_known
from p2pgrid.provider.engine_plan import plan_engines
from p2pgrid.provider.node import Provider
from p2pgrid.provider.pages import serve_pages
from tests.provider.rig import CHAT, until

BODY: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}
CARD_TYPE = "/p2pgrid/card/1"


class Nobody:
    """A network in which nobody is found: the tests hand the offers over, and cards come over the link."""

    async def find_providers(
        self, key: str, *, limit: int = 50, timeout_s: float = 10.0, on_found: OnFound | None = None
    ) -> list[PeerAddress]:
        return []

    async def fetch_offer(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        raise Unreachable("nobody is there.")

    async def fetch_capacity(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        raise Unreachable("nobody is there.")

    async def fetch_cards(self, peer: PeerAddress, *, timeout_s: float = 10.0) -> bytes:
        raise Unreachable("nobody is there.")


@pytest.fixture
def operator(tmp_path: Path) -> DataFolder:
    """A node's folder with a key and a card."""
    folder = DataFolder(tmp_path / "operator")
    folder.make()
    create_key(folder.key_file)
    command(card, folder, "init", "--legal-name", "Vilnius Compute UAB", "--country", "LT")
    return folder


@pytest.fixture
def buyer(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "buyer")
    folder.make()
    create_key(folder.key_file)
    return folder


def command(of: Any, data: DataFolder, *arguments: str, code: int = 0) -> Any:
    """A command's JSON."""
    result = CliRunner().invoke(of, [*arguments, "--json"], obj=CliContext(data=data), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.output)


@contextlib.asynccontextmanager
async def selling(data: DataFolder) -> AsyncIterator[Provider]:
    """The operator's node, off the network, with a fake engine."""
    async with serve_fake(FakeVllm()) as url:
        model = ModelConfig(name="fake", engine_url=url, price_input_eur="0.20", price_output_eur="0.80")
        settings = ProviderConfig(
            operator="Test", listen="127.0.0.1:0", drain_s=0, terms=TermsConfig(window_tokens=16), models=(model,)
        )
        node = Provider(
            data,
            Config(network="test", provider=settings),
            make_engines=plan_engines,
            network_name="test",
            join_network=False,
        )
        async with node:
            yield node


@contextlib.asynccontextmanager
async def buying(data: DataFolder, *nodes: Provider) -> AsyncIterator[Purchaser]:
    """The client's side, which knows these nodes."""
    ledger = SqliteLedger.open(data.ledger_file)
    book = OfferBook(Nobody(), now_ms=unix_ms)
    for node in nodes:
        assert node.offer is not None
        book.add(node.offer.record.to_bytes(), PeerAddress(node.peer_id, ()))
    cards = CardBook(Nobody(), now_ms=unix_ms, folder=data.cards_folder)
    limits = SessionLimits(link_timeout_s=3.0, queue_timeout_s=3.0, drain_s=0.0)
    try:
        async with Purchaser(data.load_key(), ledger, book, limits=limits, cards=cards) as purchaser:
            yield purchaser
    finally:
        await cards.aclose()
        await ledger.aclose()


async def sale(purchaser: Purchaser) -> None:
    """One answer bought through a gateway, and its receipt signed by both."""
    before = len(purchaser.ledger.receipts())
    server = await serve(Gateway(purchaser, network="test"), "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.addresses[0][1]}{CHAT}"
        async with aiohttp.ClientSession() as session, session.post(url, json=BODY) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["usage"]["completion_tokens"]
    finally:
        await server.aclose(SHUTDOWN_S)
    await until(lambda: len(purchaser.ledger.receipts()) > before)


def cards_in(file: str) -> list[str]:
    return [line for line in Path(file).read_text().splitlines() if CARD_TYPE in line]


def bundles(*folders: DataFolder) -> list[str]:
    files = [str(folder.path / "bundle.jsonl") for folder in folders]
    for folder, file in zip(folders, files, strict=True):
        command(receipts, folder, "export", file)
    return files


def audited(operator: DataFolder, buyer: DataFolder) -> dict[str, Any]:
    """The audit of both sides' bundles, their cards with them; it must be clean."""
    files = bundles(operator, buyer)
    verdict: dict[str, Any] = command(audit, buyer, *files)
    assert verdict["clean"], verdict
    return verdict


async def test_a_sale_a_rotation_a_sale_and_a_clean_audit(operator: DataFolder, buyer: DataFolder) -> None:
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        await sale(purchaser)
        old = node.key.public_key
    command(card, operator, "rotate")
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        assert node.key.public_key != old
        await sale(purchaser)
        first, second = (channel.message for channel in purchaser.ledger.channels())
        assert (first.provider, second.provider) == (old.raw, node.key.public_key.raw)
        assert second.continues == purchaser.ledger.head(first.channel).last_receipt_id
        assert node.cards.chain()[-1].message.peers[0].key == old.raw
        assert [len(purchaser.ledger.receipts(channel=one.channel)) for one in (first, second)] == [2, 1]
    audited(operator, buyer)
    # Later sales are in the channel that is there, and another rotation goes on from it.
    command(card, operator, "rotate")
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        *_, second, third = (channel.message for channel in purchaser.ledger.channels())
        assert third.continues == purchaser.ledger.head(second.channel).last_receipt_id
    audited(operator, buyer)
    assert cards_in(bundles(buyer)[0]), "an auditor sees who the keys are of"
    # Each key has a log of its own, and the operator shows the proofs of all three.
    file = str(operator.path / "logged.jsonl")
    written = await asyncio.to_thread(command, receipts, operator, "export", file, "--logged")
    assert written["complete"] and len(written["logs"]) == 3, written
    assert command(audit, operator, file, "--logged")["clean"]


async def leave_open(operator: DataFolder, buyer: DataFolder) -> PublicKey:
    """A sale, and an order that ends unsettled, for its link is cut. The key that the provider had."""
    async with selling(operator) as node:
        async with buying(buyer, node) as purchaser:
            await sale(purchaser)
            answer = await purchaser.buy(CHAT, BODY | {"fake": {"tokens": 400, "pace_ms": 20}})
            await until(lambda: answer.usage.output_tokens > 16)
            link = purchaser.sessions[node.peer_id].link
            assert link is not None
            link.abort()
        await until(lambda: not node.channels.live_orders)
        old = node.key.public_key
    with SqliteLedger.open_readonly(operator.ledger_file) as ledger:
        assert sum(row.countersigned for row in ledger.receipts()) == 1
    return old


async def test_what_the_old_key_left_open_is_settled_under_the_new_one(operator: DataFolder, buyer: DataFolder) -> None:
    old = await leave_open(operator, buyer)
    command(card, operator, "rotate")
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        first, second = (channel.message for channel in purchaser.ledger.channels())
        settled = purchaser.ledger.receipts(channel=first.channel)
        assert [row.countersigned for row in settled] == [True, True]
        assert second.continues == settled[0].record_id, "it goes on from what was left open"
        assert settled[0].channel.provider == old.raw, "with the old key's signature"
    audited(operator, buyer)


async def test_a_countersignature_that_the_old_key_never_saw_is_brought_to_the_new_one(
    operator: DataFolder, buyer: DataFolder, tmp_path: Path
) -> None:
    old = await leave_open(operator, buyer)
    before = tmp_path / "before"
    shutil.copytree(operator.path, before)
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await purchaser.sessions.reconcile(old)
    shutil.rmtree(operator.path)
    before.rename(operator.path)  # it ended before the client's answer was durable
    command(card, operator, "rotate")
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        assert not purchaser.ledger.open_orders(purchaser.ledger.channels()[0].message.channel)
        await sale(purchaser)
        first, second = (channel.message for channel in purchaser.ledger.channels())
        settled = purchaser.ledger.receipts(channel=first.channel)
        assert second.continues == settled[0].record_id
    with SqliteLedger.open_readonly(operator.ledger_file) as ledger:
        assert [row.countersigned for row in ledger.receipts(channel=first.channel)] == [True, True]
    audited(operator, buyer)


async def test_disputes_of_the_old_keys_channel_are_exchanged_and_answered_under_the_new_one(
    operator: DataFolder, buyer: DataFolder
) -> None:
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        (row,) = purchaser.ledger.receipts()
        await until(lambda: node.tally.receipts)
    made = await asyncio.to_thread(command, receipts, buyer, "dispute", row.record_id.hex(), "--reason", "quality")
    command(card, operator, "rotate")
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        await until(lambda: node.tally.disputes)
        answer = ("answer", made["dispute"]["id"], "--reject")
        given = await asyncio.to_thread(command, receipts, operator, *answer)
        await until(lambda: purchaser.ledger.disputes()[0].answer is not None)
        held = purchaser.ledger.disputes()[0].answer
        assert held is not None and held.id.hex() == given["dispute"]["answer"]["id"]
        assert held.signers[Role.PROVIDER].raw == row.channel.provider, "with the old key's signature"
    audited(operator, buyer)


async def test_a_key_that_the_old_one_never_acknowledged_is_a_stranger(operator: DataFolder, buyer: DataFolder) -> None:
    """The first sale was under an offer without a card: nothing that the old key signed speaks of the operator."""
    hidden = operator.path / "card.hidden"
    operator.card_file.rename(hidden)
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
    hidden.rename(operator.card_file)
    command(card, operator, "rotate")
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        assert [channel.message.continues for channel in purchaser.ledger.channels()] == [b"", b""]
    audited(operator, buyer)


async def test_a_provider_that_lost_the_old_channel_has_it_back_and_goes_on(
    operator: DataFolder, buyer: DataFolder
) -> None:
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
    command(card, operator, "rotate")
    for path in operator.path.glob("ledger.sqlite*"):
        path.unlink()
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
        first, second = (channel.message for channel in purchaser.ledger.channels())
        (receipt,) = purchaser.ledger.receipts(channel=first.channel)
        assert second.continues == receipt.record_id
    with SqliteLedger.open_readonly(operator.ledger_file) as ledger:
        assert [row.record_id for row in ledger.receipts(channel=first.channel)] == [receipt.record_id]


async def test_no_order_is_taken_on_the_old_channel(operator: DataFolder, buyer: DataFolder) -> None:
    async with selling(operator) as node, buying(buyer, node) as purchaser:
        await sale(purchaser)
    command(card, operator, "rotate")
    async with selling(operator) as node:
        (channel,) = node.channels
        client = channel.books.client
        assert node.channels.find(channel.books.id, client) is channel, "it is resumed"
        with pytest.raises(RemoteError, match="no more"):
            node.channels.find_current(channel.books.id, client)
        node.channels.check_head(channel.books.last_receipt_id, client)
        for head in (bytes(32), channel.books.signed.id):
            with pytest.raises(RemoteError, match="has that head"):
                node.channels.check_head(head, client)
        with pytest.raises(RemoteError, match="has that head"):
            node.channels.check_head(channel.books.last_receipt_id, node.key.public_key)


async def test_the_pages_show_card_and_well_known_file(operator: DataFolder) -> None:
    async with (
        selling(operator) as node,
        serve_pages(node, "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"{url}/card") as response:
            lines = (await response.text()).splitlines()
        assert [verify_card(parse_json_line(line.encode())).id for line in lines] == [node.cards.chain()[0].id]
        async with session.get(f"{url}{PATH}") as response:
            known, chain = parse_well_known(await response.read())
        assert known.peers == (node.peer_id,) and len(chain) == 1
    operator.card_file.unlink()
    async with (
        selling(operator) as node,
        serve_pages(node, "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as session,
    ):
        for path in ("/card", PATH):
            async with session.get(url + path) as response:
                assert response.status == 404


async def test_what_a_node_has_offered(operator: DataFolder) -> None:
    async with selling(operator) as node:
        first = node.offer
    command(card, operator, "rotate")
    async with selling(operator) as node:
        second = node.offer
    assert first is not None and second is not None
    rows = command(offers, operator, "--own")
    assert [row["offer"] for row in rows] == [second.id.hex(), first.id.hex()], "under the former key too"
    assert rows[0]["models"][0]["prices"]["output_eur"] == "0.80"
    assert rows[1]["shown_from_ms"] <= rows[1]["shown_until_ms"] <= rows[1]["valid_until_ms"]
    assert command(offers, operator, "--own", "--model", "another")[0]["models"] == []
    text = CliRunner().invoke(offers, ["--own"], obj=CliContext(data=operator)).output
    assert "honoured until" in text and "0.80" in text


async def test_a_new_card_is_shown_without_a_restart(operator: DataFolder) -> None:
    async with selling(operator) as node:
        first = node.offer
        assert first is not None and first.message.card == node.cards.chain()[-1].id
        command(card, operator, "sign", "--domain", "compute.example")
        await until(lambda: node.offer and node.offer.message.card != first.message.card, 10)
        assert node.offer.message.card == node.cards.chain()[-1].id
        assert node.offer.message.sequence > first.message.sequence
        command(card, operator, "revoke", node.peer_id, "--reason", "lost")
        await until(lambda: node.offer and not node.offer.message.card, 10)
        assert key_state(node.cards.chain(), node.key.public_key.raw, unix_ms()).value == "revoked"
