"""A month of payments, from orders to books: the client's file, the bank's statements, and what the provider makes
of them. Then the same month with faults, each found and named."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import pytest
from lxml import etree

from p2pgrid.settlement.payments.decisions import Decision, Finding, Kind, OpenInvoice
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.matching import match
from p2pgrid.settlement.payments.orders import Account, PaymentOrder, make_batch
from p2pgrid.settlement.payments.pain001 import NAMESPACE, write_pain001
from p2pgrid.settlement.payments.reference import creditor_reference_of
from tests.settlement.payments.bank import SHAPES, Bank, Movement
from tests.settlement.payments.makers import ALICE, BOB, CAROL, OURS, invoice, read

CLIENTS = {"Alice GmbH": ALICE, "Bobas OÜ": BOB, "Carol Oy": CAROL}
PROVIDER = Account(name="UAB Vilniaus skaičiavimai", iban=OURS)


def month(rng: random.Random) -> list[OpenInvoice]:
    return [
        invoice(f"LT-2026-{n:06d}", rng.randint(1, 500_000), debtor_name=name, debtor_ibans=(iban,))
        for n, (name, iban) in enumerate(list(CLIENTS.items()) * 10, start=1)
    ]


def paid_by(invoices: list[OpenInvoice], name: str) -> list[Movement]:
    """What the client's bank makes of the client's file: one movement for each transfer in it."""
    orders = [
        PaymentOrder(
            payee=PROVIDER,
            amount_cents=one.gross_cents,
            end_to_end_id=one.reference,
            remittance_text=f"{one.number} {creditor_reference_of(one.reference)}",
        )
        for one in invoices
    ]
    payer = Account(name=name, iban=CLIENTS[name])
    batch = make_batch(payer, orders, execution_date=date(2026, 12, 1))
    document = etree.fromstring(write_pain001(batch, created=datetime(2026, 11, 30, tzinfo=UTC)))
    spaces = {"p": NAMESPACE}
    payer_name = document.findtext(".//p:Dbtr/p:Nm", namespaces=spaces)
    payer_iban = document.findtext(".//p:DbtrAcct/p:Id/p:IBAN", namespaces=spaces)
    assert payer_name and payer_iban
    found = []
    for transfer in document.findall(".//p:CdtTrfTxInf", spaces):
        assert transfer.findtext(".//p:CdtrAcct/p:Id/p:IBAN", namespaces=spaces) == OURS
        euros, cents = str(transfer.findtext(".//p:InstdAmt", namespaces=spaces)).split(".")
        found.append(
            Movement(
                cents=int(euros) * 100 + int(cents),
                day="2026-12-01",
                end_to_end_id=str(transfer.findtext(".//p:EndToEndId", namespaces=spaces)),
                text=str(transfer.findtext(".//p:Ustrd", namespaces=spaces)),
                name=payer_name,
                iban=payer_iban,
            )
        )
    return found


@dataclass
class Ledger:
    """As a caller keeps it: invoices, and every decision that was booked."""

    invoices: list[OpenInvoice]
    decisions: list[Decision]

    def take(self, entries: tuple[BookedEntry, ...]) -> tuple[Decision, ...]:
        paid: Counter[str] = Counter()
        for decision in self.decisions:
            for booking in decision.bookings:
                paid[booking.invoice_number] += booking.amount_cents
        now = [replace(one, paid_cents=paid[one.number]) for one in self.invoices]
        made = match(entries, now, earlier=self.decisions)
        self.decisions += [one for one in made if one.is_booked]
        return made

    def open_cents(self) -> dict[str, int]:
        left = {one.number: one.gross_cents for one in self.invoices}
        for decision in self.decisions:
            for booking in decision.bookings:
                left[booking.invoice_number] -= booking.amount_cents
        return {number: cents for number, cents in left.items() if cents}


def noise(rng: random.Random) -> list[Movement]:
    """What else happens on an account."""
    return [
        Movement(cents=-120_000, text="Nuoma 2026-11", name="Nuomotojas", iban="LV80BANK0000435195001"),
        Movement(cents=-1_250, text="Account fee 11/2026", name="Bankas", iban=""),
        Movement(cents=rng.randint(1, 9_999), text="Gift", name="Aunt", iban="EE471000001020145685"),
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_month_closes(shape: str) -> None:
    rng = random.Random(shape)
    ledger = Ledger(month(rng), [])
    movements = [one for name in CLIENTS for one in paid_by(of(ledger, name), name)] + noise(rng)
    rng.shuffle(movements)
    pieces = [movements[:11], movements[11:]]
    files = [read(Bank(shape=shape, statement_id=f"D{n}").write(piece)) for n, piece in enumerate(pieces)]
    made = [one for file in [*files, *files] for one in ledger.take(file.entries)]
    assert ledger.open_cents() == {}
    kinds = Counter(one.kind for one in made)
    assert kinds == {Kind.EXACT: 30, Kind.UNRELATED: 6, Kind.DUPLICATE: 30}
    assert not any(one.on_account_cents or one.findings for one in made)


def of(ledger: Ledger, name: str) -> list[OpenInvoice]:
    return [one for one in ledger.invoices if one.debtor_name == name]


def test_the_same_month_with_faults() -> None:
    rng = random.Random(6)
    ledger = Ledger(month(rng), [])
    alice = paid_by(of(ledger, "Alice GmbH"), "Alice GmbH")
    bob = paid_by(of(ledger, "Bobas OÜ"), "Bobas OÜ")
    short = replace(alice[0], cents=alice[0].cents - 1)
    wrong = replace(alice[1], end_to_end_id=alice[2].end_to_end_id, text="")
    returned = replace(bob[0], cents=-bob[0].cents, reason="AC04", is_reversal=True, day="2026-12-02")
    twice = replace(bob[1], day="2026-12-02")
    mangled = replace(bob[2], end_to_end_id="", text=bob[2].end_to_end_id[:20].lower(), iban="", name="?")
    dollars = replace(bob[3], currency="USD")
    euros = [short, *alice[2:], *bob[:2], mangled, *bob[4:], returned, twice]
    made = list(ledger.take(read(Bank().write(euros)).entries))
    made += ledger.take(read(Bank(statement_id="LATE").write([replace(wrong, day="2026-12-03")])).entries)
    made += ledger.take(read(Bank(statement_id="USD", currency="USD").write([dollars])).entries)
    by_kind = {kind: [one for one in made if one.kind is kind] for kind in Kind}
    assert [one.entry.amount_cents for one in by_kind[Kind.PART]] == [short.cents]
    assert [one.entry.return_reason for one in by_kind[Kind.RETURNED]] == ["AC04"]
    (over,) = by_kind[Kind.OVER]
    assert (over.on_account_cents, over.findings) == (twice.cents, (Finding.REUSED_REFERENCE,))
    (reused,) = [one for one in by_kind[Kind.EXACT] if one.findings]
    assert reused.findings == (Finding.REUSED_REFERENCE,)
    assert reused.entry.amount_cents == wrong.cents
    assert [one.entry.currency for one in by_kind[Kind.FOREIGN_CURRENCY]] == ["USD"]
    left = ledger.open_cents()
    missing = {one.number for one in of(ledger, "Carol Oy")}
    named = {short.text.split()[0], bob[0].text.split()[0], bob[3].text.split()[0]}
    assert set(left) == missing | named
    assert left[short.text.split()[0]] == 1
