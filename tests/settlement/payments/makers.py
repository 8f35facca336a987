"""Entries and invoices for tests, from a few words."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import date
from io import BytesIO
from typing import Any

from p2pgrid.settlement.payments.camt053 import read_camt
from p2pgrid.settlement.payments.decisions import OpenInvoice
from p2pgrid.settlement.payments.entries import BookedEntry, with_keys
from p2pgrid.settlement.payments.reference import make_reference
from p2pgrid.settlement.payments.statements import BankFile

OURS = "LT121000011101001000"
ALICE = "DE89370400440532013000"
BOB = "EE382200221020145685"
CAROL = "FI2112345600000785"


def statement_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def reference(name: str) -> str:
    return make_reference(statement_id(name))


def invoice(number: str, gross: int, paid: int = 0, **others: Any) -> OpenInvoice:
    made = OpenInvoice(number=number, reference=reference(number), gross_cents=gross, paid_cents=paid)
    return replace(made, **others)


def entry(cents: int, *, day: int = 2, bank: str = "", **others: Any) -> BookedEntry:
    made = BookedEntry(
        account_iban=OURS,
        source_kind="camt.053",
        statement_id=f"S{day}",
        line=1,
        amount_cents=cents,
        currency="EUR",
        booking_date=date(2026, 11, day),
        bank_reference=bank,
    )
    return with_keys([replace(made, **others)])[0]


def read(data: bytes, name: str = "bank.xml") -> BankFile:
    return read_camt(BytesIO(data), name)
