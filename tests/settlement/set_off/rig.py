"""Operators that sell to one another, and what they have on record: channels, statements, invoices. No receipts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.settlement.open_items import items_by_channel
from p2pgrid.settlement.set_off.claims import open_claims
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.settlement.set_offs import set_off_shares
from tests.factories import (
    NOW_MS,
    digest,
    make_channel,
    make_invoice,
    make_payment,
    make_statement,
    secret_key,
    vat_line,
)

DAY_MS = 86_400_000
STATED_MS = NOW_MS + DAY_MS
AT_MS = NOW_MS + 20 * DAY_MS


@dataclass
class Party:
    """An operator with one key, and its ledger."""

    name: str
    key: SecretKey = field(init=False)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)

    def __post_init__(self) -> None:
        self.key = secret_key(self.name)

    @property
    def books(self) -> AllBooks:
        return AllBooks([self.ledger])

    @property
    def operator(self) -> Operator:
        return Operator.of([self.key.public_key.raw])

    async def has(self, *records: Signed[Any]) -> None:
        await self.ledger.append(*records)


@dataclass
class Debt:
    """What a client owes a provider in one channel."""

    seller: Party
    buyer: Party
    channel: Signed[Channel]
    statements: list[Signed[Statement]] = field(default_factory=list)
    invoices: list[Signed[Invoice]] = field(default_factory=list)

    async def invoiced(self, cents: int, *, due_days: int = 14, **changes: Any) -> Signed[Invoice]:
        """A statement of so much, and its invoice, which both have. Below zero: a credit note."""
        before = self.statements[-1] if self.statements else None
        first = {"from_ms": NOW_MS, "channel": self.channel.message.channel} if before is None else {}
        stated_ms = STATED_MS + len(self.statements) * DAY_MS
        given = {"net_cents": cents, "vat": (vat_line(cents),), "stated_ms": stated_ms, **first, **changes}
        given.setdefault("due_ms", max(given["stated_ms"], STATED_MS + due_days * DAY_MS))
        right = make_statement([], digest("no receipts"), before=before, **given).message
        statement = sign_message(right, Role.PROVIDER, self.seller.key).countersigned(Role.CLIENT, self.buyer.key)
        number = f"{self.channel.message.channel.hex()[:4]}-{len(self.statements) + 1:03}"
        made = make_invoice(statement, invoice_number=number).message
        invoice = sign_message(made, Role.PROVIDER, self.seller.key)
        self.statements.append(statement)
        self.invoices.append(invoice)
        await self.share(statement, invoice)
        return invoice

    async def paid(self, index: int, cents: int, **changes: Any) -> Signed[Payment]:
        reference = f"P{index}-{cents}"
        given = {"reference": reference, "amount_cents": cents, "booked_ms": AT_MS, **changes}
        made = make_payment(self.invoices[index], self.channel.message.channel, **given).message
        payment = sign_message(made, Role.PROVIDER, self.seller.key)
        await self.share(payment)
        return payment

    async def share(self, *records: Signed[Any]) -> None:
        for party in (self.seller, self.buyer):
            await party.has(*records)


async def owes(buyer: Party, seller: Party, *cents: int, name: str = "debt", **changes: Any) -> Debt:
    """A channel, and an invoice for each of these sums."""
    label = f"{name} {buyer.name} {seller.name}"
    debt = Debt(seller, buyer, make_channel(seller.key, buyer.key, name=label))
    await debt.share(debt.channel)
    for each in cents:
        await debt.invoiced(each, **changes)
    return debt


def altered(signed: Signed[Any], **changes: Any) -> Signed[Any]:
    """The message changed under the signatures that it had."""
    message = msgspec.structs.replace(signed.message, **changes)
    payload = msgspec.msgpack.encode(message)
    record = type(signed.record)(signed.record.payload_type, payload, signed.record.signatures)
    return Signed(message, record, record.id, signed.signers)


def lines_of(records: Iterable[Signed[Any]]) -> tuple[str, ...]:
    return tuple(one.record.to_json_line().decode() for one in records)


def left_to_pay(party: Party, debt: Debt) -> list[int]:
    """Of each invoice of a channel, as `p2pgrid pay` sees it."""
    channel = debt.channel.message.channel
    (found,) = items_by_channel(party.ledger, [channel], set_off=set_off_shares(party.ledger, [channel]))
    return [item.left_cents for item in found.items]


def open_cents(party: Party, debts: Sequence[Debt], at_ms: int = AT_MS) -> int:
    """What a party holds to be open in these channels."""
    return sum(
        claim.open_cents
        for debt in debts
        for claim in open_claims(party.ledger, debt.channel.message, at_ms=at_ms, ours=party.operator.keys)
    )
