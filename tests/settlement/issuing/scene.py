"""A provider in Lithuania and a client in Germany, with statements that both have signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pgrid.cli.config_template import render_config
from p2pgrid.config import BillingConfig, parse_config
from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Usage
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Statement
from p2pgrid.proto.statement_rules import statement_root
from p2pgrid.settlement.billing import draft_details
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from tests.factories import CLIENT, DAY_MS, NOW_MS, Dealings, digest, make_statement

IBAN = "LT121000011101001000"
OTHER_IBAN = "DE89370400440532013000"
SELLER = {
    "legal-name": "Žaibas UAB", "street": "Gedimino pr. 1", "city": "Vilnius", "post-code": "01103", "country": "LT",
    "vat-id": "LT100001738313", "registration-number": "300123456", "iban": IBAN, "contact-name": "Ąžuolas",
    "contact-phone": "+370 5 212 3456", "contact-email": "books@zaibas.example",
}  # fmt: skip
BUYER = {
    "legal-name": "Käufer GmbH", "street": "Hauptstr. 5", "city": "Berlin", "post-code": "10115", "country": "DE",
    "vat-id": "DE136695976", "iban": OTHER_IBAN, "buyer-reference": "K-77",
}  # fmt: skip


def config_text(billing: dict[str, Any], **provider: Any) -> str:
    """config.toml with these settings."""
    lines = render_config(provider={"time-zone": "Europe/Vilnius", **provider}).split("\n")
    for key, value in billing.items():
        at = next(
            n
            for n, line in enumerate(lines)
            if line.startswith((f"#{key} =", f"{key} =")) and n > lines.index("[billing]")
        )
        lines[at] = f"{key} = {str(value).lower() if isinstance(value, bool) else repr_toml(value)}"
    return "\n".join(lines)


def repr_toml(value: object) -> str:
    return str(value) if isinstance(value, int) else '"' + str(value).replace('"', '\\"') + '"'


def billing_of(fields: dict[str, Any]) -> BillingConfig:
    return parse_config(config_text(fields), "test").billing


def details(fields: dict[str, Any], key: SecretKey = CLIENT, by: Role = Role.CLIENT, sequence: int = 1,
            **changes: Any) -> Signed[BillingDetails]:  # fmt: skip
    """Signed billing details."""
    import msgspec

    draft = draft_details(billing_of(fields), party=key.public_key, by=by, sequence=sequence, stated_ms=NOW_MS)
    return sign_message(msgspec.structs.replace(draft, **changes), by, key)


class Scene:
    """A provider's data folder and ledger."""

    def __init__(self, folder: Path, ledger: Ledger, seller: dict[str, Any] | None = None,
                 buyer: dict[str, Any] | None = None, client: SecretKey = CLIENT,
                 name: str = "channel") -> None:  # fmt: skip
        self.data = DataFolder(folder)
        self.data.make()
        self.data.config_file.write_text(config_text({**SELLER, **(seller or {})}))
        if not self.data.key_file.exists():
            self.data.key_file.touch(mode=0o600)
            self.data.key_file.write_text(digest("provider").hex() + "\n")  # PROVIDER's seed
        self.ledger = ledger
        self.client = client
        self.deal = Dealings(client=client, name=name)
        self.statements: list[Signed[Statement]] = []
        self.connection = open_database(folder / FILE_NAME)
        self.book = DetailsBook(self.connection, lambda: NOW_MS + 1000 * DAY_MS)
        self.book.keep(details({**BUYER, **(buyer or {})}, client))

    async def opened(self) -> Scene:
        await self.ledger.append(self.deal.offer)
        await self.ledger.append(self.deal.channel)
        return self

    async def stated(self, *outputs: int, **changes: Any) -> Signed[Statement]:
        """Receipts of so many output tokens each, and the statement over them."""
        receipts = []
        for output in outputs:
            order = self.deal.order(max_output_tokens=max(output, 1000), max_amount_pico=10**13)
            signed = self.deal.proposal(order, usage=Usage(prompt_tokens=10, output_tokens=output))
            signed = signed.countersigned(Role.CLIENT, self.client)
            await self.ledger.append(order)
            await self.ledger.append(signed)
            receipts.append(signed)
        before = self.statements[-1] if self.statements else None
        statement = make_statement(receipts, statement_root(one.id for one in receipts), before=before, **changes)
        await self.ledger.append(statement)
        self.statements.append(statement)
        return statement
