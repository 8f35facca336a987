"""Two nodes' data folders with what was billed between them, their commands, and the bank in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from lxml import etree

from p2pgrid.cli.main import cli
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import P2pgridError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Payment
from p2pgrid.settlement.payments.pain001 import NAMESPACE
from tests.factories import NOW_MS
from tests.settlement.payments.bank import Bank, Movement
from tests.settlement.payments.makers import ALICE, BOB, OURS
from tests.settlement.records import Billed

__all__ = ["ALICE", "BOB", "OURS"]


class FixedDetails:
    """Billing details as a test has them: the last that were signed."""

    def __init__(self) -> None:
        self.known: dict[tuple[bytes, Role], Signed[BillingDetails]] = {}

    def say(self, key: SecretKey, by: Role, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "party": key.public_key.raw,
            "by": by,
            "sequence": 1,
            "stated_ms": NOW_MS,
            "legal_name": "UAB Vilniaus skaičiavimai",
            "street": "Gedimino pr. 1",
            "city": "Vilnius",
            "post_code": "01103",
            "country": "LT",
            "iban": OURS,
        }
        self.known[key.public_key.raw, by] = sign_message(BillingDetails(**{**fields, **changes}), by, key)

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        return self.known.get((party, by))


@dataclass
class Node:
    """A data folder, and `p2pgrid --data FOLDER ...` on it."""

    path: Path
    key: SecretKey

    def __post_init__(self) -> None:
        self.data.make()
        self.data.key_file.write_text(self.key.expose_seed().hex())
        self.data.key_file.chmod(0o600)

    @property
    def data(self) -> DataFolder:
        return DataFolder(self.path)

    def put(self, *records: Signed[Any]) -> None:
        """Records come into the ledger; those that are there stay."""

        async def write() -> None:
            ledger = SqliteLedger.open(self.data.ledger_file)
            await ledger.append(*records)
            await ledger.aclose()

        asyncio.run(write())

    def payments(self, channel: bytes) -> list[Signed[Payment]]:
        with SqliteLedger.open_readonly(self.data.ledger_file) as ledger:
            return ledger.settlement(Payment, channel)

    def __call__(self, *arguments: str | Path) -> str:
        """What the command prints; its error is raised."""
        result = CliRunner().invoke(cli, ["--data", str(self.path), *map(str, arguments)])
        if isinstance(result.exception, P2pgridError):
            raise result.exception
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self(*arguments, "--json"))


@dataclass
class Scene:
    """A provider and a client, one channel, and both their banks."""

    folder: Path
    details: FixedDetails = field(default_factory=FixedDetails)
    billed: Billed = field(default_factory=Billed)
    files: int = 0

    def __post_init__(self) -> None:
        self.provider = Node(self.folder / "provider", self.billed.provider)
        self.client = Node(self.folder / "client", self.billed.client)
        self.out = self.folder / "out"
        self.out.mkdir()
        self.details.say(self.billed.provider, Role.PROVIDER)
        client: dict[str, Any] = {"legal_name": "Alice GmbH", "city": "Berlin", "country": "DE", "iban": ALICE}
        self.details.say(self.billed.client, Role.CLIENT, **client)
        self.meet()

    def meet(self) -> None:
        """Both have all records, as after an exchange of statements."""
        self.billed.payments = self.provider.payments(self.billed.id) if self.provider.data.ledger_file.exists() else []
        for node in (self.provider, self.client):
            node.put(*self.billed.records)

    def pay(self, *arguments: str) -> list[Movement]:
        """The client pays; what its bank does."""
        shown = self.client.json("pay", "--out", self.out, *arguments)
        return [one for path in shown["files"] for one in carried_out(Path(path))]

    def camt(self, movements: Sequence[Movement], *, name: str = "", **bank: Any) -> Path:
        """The bank's file over these."""
        self.files += 1
        path = self.folder / (name or f"camt-{self.files}.xml")
        path.write_bytes(Bank(**{"statement_id": f"S{self.files}", **bank}).write(movements))
        return path

    def open_cents(self) -> int:
        shown = self.provider.json("bank", "list", "--open")
        return int(sum(one["open_cents"] for one in shown["open"]) - sum(one["cents"] for one in shown["ahead"]))


def carried_out(path: Path, day: str = "2026-11-20") -> list[Movement]:
    """What the payee's bank makes of a payment file: one movement for each transfer."""
    document = etree.fromstring(path.read_bytes())
    spaces = {"p": NAMESPACE}

    def text(node: Any, way: str) -> str:
        return str(node.findtext(way, namespaces=spaces) or "")

    found = []
    for transfer in document.findall(".//p:CdtTrfTxInf", spaces):
        euros, cents = text(transfer, ".//p:InstdAmt").split(".")
        found.append(
            Movement(
                cents=int(euros) * 100 + int(cents),
                day=day,
                end_to_end_id=text(transfer, ".//p:EndToEndId"),
                text=text(transfer, ".//p:Ustrd"),
                name=text(document, ".//p:Dbtr/p:Nm"),
                iban=text(document, ".//p:DbtrAcct//p:IBAN"),
            )
        )
    return found


def as_debits(
    movements: Iterable[Movement], name: str = "UAB Vilniaus skaiciavimai", iban: str = OURS
) -> list[Movement]:
    """The same, as the payer's bank tells it."""
    return [
        Movement(cents=-one.cents, day=one.day, end_to_end_id=one.end_to_end_id, text=one.text, name=name, iban=iban)
        for one in movements
    ]
