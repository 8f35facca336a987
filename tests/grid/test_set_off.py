"""Two operators that buy from one another set off through their running nodes: four processes, commands alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.data_folder import DataFolder
from p2pgrid.demo.grid import NETWORK, Grid, Operator
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.record import Role, sign_message
from p2pgrid.proto.set_off import SetOff
from p2pgrid.settlement.statements.drafting import draft
from tests.factories import make_invoice
from tests.grid.conftest import MODEL, FakeEngine, get, p2pgrid, until
from tests.grid.test_reconcile import command
from tests.grid.test_sales import ask, keep_address
from tests.settlement.statements.parts import DictDetails, details_of

pytestmark = pytest.mark.process

VILNIUS = Operator("Vilnius Compute", "operator-lt", "LT", "0.10", "0.02", "2000")
TORINO = Operator("Torino Energia", "operator-it", "IT", "0.15", "0.05", "3000")


@dataclass
class House:
    """An operator: a node that sells, a gateway that buys from the other one alone, and a card that names both."""

    operator: Operator
    node: NodeProcess
    gateway: NodeProcess = field(repr=False)

    @property
    def peer(self) -> str:
        return str(self.node.ready["peer_id"])

    async def set_off(self, *arguments: str) -> Any:
        """`p2pgrid set-off`, over both folders."""
        verb, *rest = arguments
        return await command(self.node.data, "set-off", verb, *rest, "--with", str(self.gateway.data))

    def on_record(self) -> list[int]:
        """Set-offs in each folder's ledger, by how many have signed."""
        found = []
        for folder in (self.node.data, self.gateway.data):
            with SqliteLedger.open_readonly(DataFolder(folder).ledger_file) as ledger:
                (channel,) = ledger.channels()
                found += [len(one.signers) for one in ledger.settlement(SetOff, channel.message.channel)]
        return found


@pytest.fixture
async def houses(tmp_path: Path, fake_engine: FakeEngine) -> AsyncIterator[tuple[Grid, House, House]]:
    grid = Grid(tmp_path, model=MODEL, engine_url=fake_engine.url)
    gateways: dict[Operator, NodeProcess] = {}

    async def start(seller: Operator, country: str) -> None:
        """Its gateway, and its node with a card that names the gateway's key."""
        data = tmp_path / f"gateway-{seller.country}"
        data.mkdir(mode=0o700)
        (data / "config.toml").write_text(f'network = "{NETWORK}"\n\n[client]\ncountries = ["{country}"]\n')
        peers = str(tmp_path / "bootstrap_peers.toml")
        listen = ("--listen", "127.0.0.1:0", "--network", NETWORK, "--bootstrap-peers", peers)
        gateways[seller] = NodeProcess(f"{seller.name}'s gateway", data, "gateway", *listen)
        await asyncio.gather(gateways[seller].start(timeout_s=60), grid.start_operator(seller))
        node = grid.operators[seller]
        keep_address(node)
        await node.stop()
        await command(node.data, "card", "init", "--legal-name", seller.name, "--country", seller.country)
        await command(node.data, "card", "sign", "--peer", gateways[seller].ready["peer_id"])
        await node.start(timeout_s=60)

    try:
        await grid.start_bootstrap()
        await asyncio.gather(start(VILNIUS, "IT"), start(TORINO, "LT"))
        one, other = (House(seller, grid.operators[seller], gateways[seller]) for seller in (VILNIUS, TORINO))
        yield grid, one, other
    finally:
        await asyncio.gather(*(gateway.stop() for gateway in gateways.values()), grid.stop())


async def sold_in(grid: Grid) -> list[str]:
    """The countries whose offers a gateway knows."""
    models = (await get(grid, "/models"))["data"]
    return [offer["country"] for model in models for offer in model["p2pgrid"]["offers"]]


def signed_receipts(node: NodeProcess) -> list[bool]:
    """Whether both have signed, of each receipt in a node's ledger: read here, for a command a look takes a second."""
    with SqliteLedger.open_readonly(DataFolder(node.data).ledger_file) as ledger:
        return [row.countersigned for row in ledger.receipts()]


async def buys(grid: Grid, buyer: House, seller: House, answers: int) -> None:
    grid.gateway = buyer.gateway
    await until(lambda: sold_in(grid), lambda countries: seller.operator.country in countries)
    for _ in range(answers):
        await ask(grid)
    for node in (buyer.gateway, seller.node):
        await until(lambda node=node: asyncio.to_thread(signed_receipts, node), [True] * answers)
    grid.gateway = None


async def invoiced(seller: House, buyer: House) -> int:
    """The month's statement and its invoice, on both ledgers, as both would have made them; what is to be paid."""
    now_ms = time.time_ns() // 1_000_000
    sells, buys = DataFolder(seller.node.data), DataFolder(buyer.gateway.data)
    keys = {Role.PROVIDER: sells.load_key(), Role.CLIENT: buys.load_key()}
    details = DictDetails(*(details_of(role, key) for role, key in keys.items()))
    ledgers = [SqliteLedger.open(folder.ledger_file) for folder in (sells, buys)]
    (channel,) = ledgers[0].channels()
    made = (await draft(ledgers[0], channel, details, now_ms=now_ms, is_wanted=True)).statement
    signed = sign_message(made, Role.PROVIDER, keys[Role.PROVIDER]).countersigned(Role.CLIENT, keys[Role.CLIENT])
    number = f"{seller.operator.country}-1"
    invoice = make_invoice(signed, invoice_number=number, issued_ms=made.stated_ms).message
    for ledger in ledgers:
        await ledger.append(signed, sign_message(invoice, Role.PROVIDER, keys[Role.PROVIDER]))
        await ledger.aclose()
    return made.gross_cents


async def exported(node: NodeProcess) -> str:
    """A node's records, in a file."""
    file = str(node.data.parent / f"{node.data.name}.jsonl")
    code, _, errors = await p2pgrid(node.data, "receipts", "export", file)
    assert code == 0, errors
    return file


async def test_proposed_accepted_and_in_force_on_all_four(houses: tuple[Grid, House, House]) -> None:
    grid, vilnius, torino = houses
    await buys(grid, vilnius, torino, 4)
    await buys(grid, torino, vilnius, 2)
    nodes = [node for house in (vilnius, torino) for node in (house.gateway, house.node)]
    await asyncio.gather(*(node.stop() for node in nodes))
    owed, owing = await invoiced(torino, vilnius), await invoiced(vilnius, torino)
    assert owed > owing > 0
    # Who sells first: a gateway that comes before asks an address where nobody is yet, and again much later.
    for kind in ((vilnius.node, torino.node), (vilnius.gateway, torino.gateway)):
        await asyncio.gather(*(node.start(timeout_s=60) for node in kind))

    made = await vilnius.set_off("propose", torino.peer)
    assert made["amount_cents"] == owing and vilnius.on_record() == [1, 1]
    # Each channel brings it over: to the other's node, and to its gateway.
    await until(lambda: asyncio.to_thread(torino.on_record), [1, 1])
    (waiting,) = await torino.set_off("list")
    assert (waiting["state"], waiting["id"]) == ("waits-for-us", made["set_offs"][0]["id"])

    await torino.set_off("accept", waiting["id"][:12])
    assert torino.on_record() == [2, 2]
    await until(lambda: asyncio.to_thread(vilnius.on_record), [2, 2])
    for house in (vilnius, torino):
        (view,) = await house.set_off("list")
        assert (view["state"], view["amount_cents"]) == ("in-force", owing)
    code, _, errors = await p2pgrid(
        vilnius.node.data, "set-off", "propose", torino.peer, "--with", str(vilnius.gateway.data)
    )
    assert code == 2 and "nothing to set off" in errors

    # Both sides of both channels would state it now, and all four ledgers together are clean.
    sides = [
        side
        for seller, buyer in ((vilnius, torino), (torino, vilnius))
        for side in ((seller.node.data, buyer.gateway.ready["peer_id"]), (buyer.gateway.data, seller.peer))
    ]
    for found in await asyncio.gather(*(command(data, "settle", peer, "--dry-run") for data, peer in sides)):
        assert found["settled"][0]["channels"][0]["statements"][0]["set_off_cents"] == owing
    verdict = await command(grid.folder, "audit", *await asyncio.gather(*map(exported, nodes)))
    assert verdict["clean"]
