"""Two operators, three clients, three countries: data folders with a month of dealings in them, and real nodes on them.

Everything is done as people do it: `p2pgrid` in processes of its own, files that go from one to the other, a bank that
reads what it is given and writes what it booked.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.demo.processes import NodeProcess
from p2pgrid.proto.keys import SecretKey
from tests.grid.conftest import p2pgrid
from tests.month.past import Past, write
from tests.proto.chains import DAY_MS

NETWORK: Final = "month"
RECEIPTS: Final = 10_000
TIME_ZONE: Final = "Europe/Vilnius"
"""Of both operators."""


@dataclass(frozen=True)
class Company:
    """One party, as it stands on invoices."""

    name: str
    folder: str
    street: str
    city: str
    post_code: str
    country: str
    vat_id: str
    iban: str
    prefix: str = ""
    """Of its invoices' numbers; empty for who issues none."""


VILNIUS = Company(
    "UAB Vilniaus skaičiavimai",
    "vilnius",
    "Gedimino pr. 1",
    "Vilnius",
    "LT-01103",
    "LT",
    "LT100001738313",
    "LT121000011101001000",
    "VS",
)
TARTU = Company(
    "Tartu Arvutuskeskus OÜ",
    "tartu",
    "Ülikooli 18",
    "Tartu",
    "50090",
    "EE",
    "EE100931558",
    "EE382200221020145685",
    "TA",
)
ALICE = Company(
    "UAB Alisa",
    "alice",
    "Laisvės al. 5",
    "Kaunas",
    "LT-44001",
    "LT",
    "LT290061414",
    "LT897044060001234567",
)
BERTA = Company(
    "Berta Maschinenbau GmbH",
    "berta",
    "Hauptstraße 5",
    "Köln",
    "50667",
    "DE",
    "DE136695976",
    "DE89370400440532013000",
)
CARLO = Company(
    "Carlo Energia S.r.l.",
    "carlo",
    "Via Roma 7",
    "Torino",
    "10121",
    "IT",
    "IT00743110157",
    "IT60X0542811101000000123456",
)
OPERATORS: Final = (VILNIUS, TARTU)
CLIENTS: Final = (ALICE, BERTA, CARLO)

_CONFIG: Final = """\
network = "{network}"
bootstrap-peers = "{peers}"

[billing]
legal-name = "{one.name}"
street = "{one.street}"
city = "{one.city}"
post-code = "{one.post_code}"
country = "{one.country}"
vat-id = "{one.vat_id}"
iban = "{one.iban}"
contact-name = "Accounts"
contact-phone = "+370 5 1234567"
contact-email = "accounts@example.eu"
{more}
"""
_SELLS: Final = """
[provider]
operator = "{one.name}"
country = "{one.country}"
listen = "127.0.0.1:0"
libp2p-listen = ["/ip4/127.0.0.1/tcp/0"]
time-zone = "{time_zone}"

[[provider.models]]
name = "fake"
engine-url = "{engine}"
price-input-eur = "0.40"
price-output-eur = "1.80"
"""


@dataclass
class Channel:
    """Who sold to whom, and what."""

    seller: Company
    buyer: Company
    buyer_folder: Path
    past: Past


@dataclass
class Scene:
    """The folders, what is in them, and the nodes that run."""

    root: Path
    engine_url: str
    channels: list[Channel] = field(default_factory=list)
    nodes: dict[str, NodeProcess] = field(default_factory=dict)

    @property
    def peers_file(self) -> Path:
        """Through which all find one another."""
        return self.root / "bootstrap_peers.toml"

    def data(self, company: Company, *, buying: bool = False) -> Path:
        """Its data folder; an operator buys from another one, with a key of its own."""
        return self.root / (f"{company.folder}-buys" if buying and company in OPERATORS else company.folder)

    @property
    def buyers(self) -> list[Path]:
        """The folders that buy."""
        return sorted({one.buyer_folder for one in self.channels})

    def key(self, data: Path) -> SecretKey:
        """The key of a folder."""
        return DataFolder(data).load_key()

    def peer_id(self, company: Company, *, buying: bool = False) -> str:
        """As others name it."""
        return self.key(self.data(company, buying=buying)).public_key.peer_id

    def make_folder(self, company: Company, *, buying: bool = False) -> None:
        """A key and a config.toml."""
        data = DataFolder(self.data(company, buying=buying))
        data.make()
        create_key(data.key_file)
        sells = company in OPERATORS and not buying
        text = _CONFIG.format(
            network=NETWORK,
            peers=self.peers_file,
            one=company,
            more=f'invoice-prefix = "{company.prefix}"' if sells else "",
        )
        data.config_file.write_text(
            text + (_SELLS.format(one=company, engine=self.engine_url, time_zone=TIME_ZONE) if sells else "")
        )

    async def make_past(self, *, from_ms: int, until_ms: int, receipts: int = RECEIPTS, seed: int = 1) -> None:
        """The month's dealings, in everybody's ledgers: each client buys from both operators, and those from each
        other."""
        pairs = [(seller, buyer) for seller in OPERATORS for buyer in CLIENTS]
        pairs += [(VILNIUS, TARTU), (TARTU, VILNIUS)]
        share, rest = divmod(receipts, len(pairs))
        for index, (seller, buyer) in enumerate(pairs):
            folder = self.data(buyer, buying=True)
            past = Past(
                seller.name,
                buyer.name,
                self.key(self.data(seller)),
                self.key(folder),
                from_ms=from_ms,
                seed=seed,
            )
            spend(past, share + (rest if index == 0 else 0), until_ms=until_ms)
            self.channels.append(Channel(seller, buyer, folder, past))
        for seller in OPERATORS:
            books = [one.past.provider_has for one in self.channels if one.seller is seller]
            await write(DataFolder(self.data(seller)).ledger_file, books)
        for folder in self.buyers:
            books = [one.past.client_has for one in self.channels if one.buyer_folder == folder]
            await write(DataFolder(folder).ledger_file, books)

    async def start(self) -> None:
        """The bootstrap peer and both operators' nodes."""
        self.peers_file.write_text(f"[networks.{NETWORK}]\npeers = []\n")
        bootstrap = NodeProcess(
            "The bootstrap peer",
            self.root / "bootstrap",
            "bootstrap",
            "--network",
            NETWORK,
            "--bootstrap-peers",
            str(self.peers_file),
            "--libp2p-listen",
            "/ip4/127.0.0.1/tcp/0",
        )
        self.nodes["bootstrap"] = bootstrap
        ready = await bootstrap.start(timeout_s=60)
        addresses = ", ".join(f'"{address}"' for address in ready["addresses"])
        self.peers_file.write_text(f"[networks.{NETWORK}]\npeers = [{addresses}]\n")
        await asyncio.gather(*(self.start_operator(one) for one in OPERATORS))

    async def start_operator(self, company: Company) -> None:
        """`p2pgrid serve`."""
        node = NodeProcess(company.name, self.data(company), "serve")
        self.nodes[company.folder] = node
        await node.start(timeout_s=120)

    async def stop(self) -> None:
        """Every process."""
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))


def spend(past: Past, receipts: int, *, until_ms: int) -> None:
    """With one dispute that is accepted, one that is rejected and one that is open at the end."""
    quarter = receipts // 4
    for weeks_left, accept in ((3, True), (2, False), (1, None)):
        past.spend(quarter, until_ms=until_ms - weeks_left * 7 * DAY_MS)
        past.dispute(next(one for one in reversed(past.receipts) if one.message.amount_pico), accept=accept)
    past.spend(receipts - 3 * quarter, until_ms=until_ms)


async def command(data: Path, *arguments: str, code: int = 0) -> Any:
    """A command that ends with that code; what it printed as JSON."""
    ended, output, errors = await p2pgrid(data, *arguments, "--json")
    assert ended == code, f"{arguments}: {ended}\n{output}\n{errors}"
    return json.loads(output) if output.strip() else json.loads(errors)
