"""Billing details, hooks and clocks for tests of statements."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Invoice, InvoiceType, Statement
from p2pgrid.settlement.hooks import InvoiceFile, NamedFile
from tests.factories import CLIENT, PROVIDER

SELLER: dict[str, Any] = {
    "legal_name": "Vilnius Compute UAB",
    "street": "Gedimino pr. 1",
    "city": "Vilnius",
    "post_code": "01103",
    "country": "LT",
    "vat_id": "LT100001738313",
    "iban": "LT121000011101001000",
}
BUYER: dict[str, Any] = {
    "legal_name": "Kauno prekyba UAB",
    "street": "Laisvės al. 2",
    "city": "Kaunas",
    "post_code": "44240",
    "country": "LT",
    "vat_id": "LT100001919017",
}


def details_of(role: Role, key: SecretKey | None = None, **changes: Any) -> Signed[BillingDetails]:
    """One party's, at home in Lithuania."""
    key = key or (PROVIDER if role is Role.PROVIDER else CLIENT)
    fields = SELLER if role is Role.PROVIDER else BUYER
    message = BillingDetails(
        **{"party": key.public_key.raw, "by": role, "sequence": 1, "stated_ms": 1_000, **fields, **changes}
    )
    return sign_message(message, role, key)


class DictDetails:
    """A book of details in memory."""

    def __init__(self, *signed: Signed[BillingDetails]) -> None:
        self.kept: dict[tuple[bytes, Role], Signed[BillingDetails]] = {}
        for one in signed:
            self.keep(one)

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        return self.kept.get((party, by))

    def keep(self, signed: Signed[BillingDetails]) -> None:
        place = signed.message.party, signed.message.by
        known = self.kept.get(place)
        if known is None or known.message.sequence < signed.message.sequence:
            self.kept[place] = signed


def own_details(role: Role) -> DictDetails:
    """What a side has before it met the other."""
    return DictDetails(details_of(role))


def both_details() -> DictDetails:
    """What it has afterwards."""
    return DictDetails(details_of(Role.PROVIDER), details_of(Role.CLIENT))


@dataclass
class Issuer:
    """Issues an invoice of each statement: a file that is no invoice, and its record."""

    ledger: Ledger
    key: SecretKey = PROVIDER
    stated: list[Signed[Statement]] = field(default_factory=list)
    files: dict[bytes, InvoiceFile] = field(default_factory=dict)
    size: int = 100

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        self.stated.append(signed)
        if signed.message.net_cents:
            await self.issue(signed, channel)

    async def issue(self, signed: Signed[Statement], channel: Channel) -> None:
        number = f"{channel.channel.hex()[:4]}-{signed.message.statement_number}"
        file = InvoiceFile(name=f"{number}.xml", content=(number.encode() * self.size)[: self.size])
        digest = hashlib.sha256(file.content).digest()
        self.files[digest] = file
        statement = signed.message
        invoice = Invoice(
            channel=statement.channel,
            statement=signed.id,
            invoice_number=number,
            type_code=InvoiceType.INVOICE if statement.net_cents >= 0 else InvoiceType.CREDIT_NOTE,
            currency=statement.currency,
            net_cents=statement.net_cents,
            vat_cents=statement.gross_cents - statement.net_cents,
            gross_cents=statement.gross_cents,
            document_sha256=digest,
            issued_ms=statement.stated_ms,
        )
        await self.ledger.append(sign_message(invoice, Role.PROVIDER, self.key))

    def document(self, invoice: Signed[Invoice]) -> InvoiceFile | None:
        return self.files.get(invoice.message.document_sha256)


@dataclass
class Receiver:
    """Takes documents in."""

    stated: list[Signed[Statement]] = field(default_factory=list)
    files: dict[bytes, NamedFile] = field(default_factory=dict)

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        self.stated.append(signed)

    def lacks(self, invoices: Sequence[Signed[Invoice]]) -> Sequence[Signed[Invoice]]:
        return [one for one in invoices if one.message.document_sha256 not in self.files]

    async def on_document(self, invoice: Signed[Invoice], channel: Channel, file: NamedFile) -> None:
        self.files[invoice.message.document_sha256] = file
