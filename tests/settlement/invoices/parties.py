"""Sellers, buyers, statement lines: what tests make documents of."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

from p2pgrid.proto.statement import StatementLine
from p2pgrid.settlement.invoices.document import PrecedingInvoice
from p2pgrid.settlement.invoices.make import Head
from p2pgrid.settlement.invoices.parties import (
    Address,
    BankAccount,
    Contact,
    ElectronicAddress,
    Party,
    Registration,
)

VAT_IDS = {
    "LT": "LT100001738313",
    "LV": "LV40003521600",
    "EE": "EE100931558",
    "FI": "FI20774740",
    "DE": "DE136695976",
    "IT": "IT00743110157",
    "FR": "FR40303265045",
    "GR": "EL094259216",
    "NL": "NL004495445B01",
    "PL": "PL8567346215",
    "AT": "ATU13585627",
}
IBANS = {
    "LT": "LT121000011101001000",
    "LV": "LV80BANK0000435195001",
    "EE": "EE382200221020145685",
    "FI": "FI2112345600000785",
    "DE": "DE89370400440532013000",
    "IT": "IT60X0542811101000000123456",
}
TOWNS = {
    "LT": ("Gedimino pr. 1", "LT-01103", "Vilnius"),
    "LV": ("Brīvības iela 10", "LV-1010", "Rīga"),
    "EE": ("Pärnu mnt 10", "10148", "Tallinn"),
    "FI": ("Hämeentie 3", "00530", "Helsinki"),
    "DE": ("Straße des 17. Juni 135", "10623", "Berlin"),
    "IT": ("Via Nazionale 91", "00184", "Roma"),
    "US": ("1 Main Street", "94105", "San Francisco"),
}
SELLERS = ("LT", "LV", "EE", "FI", "DE", "IT")


def party(country: str, name: str = "Žaibas & Söhne", **changes: Any) -> Party:
    """A business in the country, with everything that a profile may want of it."""
    street, post_code, city = TOWNS.get(country, ("Main Street 1", "10000", "Capital"))
    made = Party(
        name=f"{name} {country}",
        address=Address(line1=street, city=city, post_code=post_code, country=country),
        vat_id=VAT_IDS.get(country, ""),
        tax_number="00743110157" if country == "IT" else "30/123/45678",
        registration=Registration(number="300123456"),
        electronic_address=ElectronicAddress(scheme="EM", address="invoices@party.example"),
        contact=Contact(name="Ąžuolas Šilas", phone="+370 5 212 3456", email="books@party.example"),
        buyer_reference="K-77",
    )
    return dataclasses.replace(made, **changes)


def head(seller: str | Party = "LT", buyer: str | Party = "DE", **changes: Any) -> Head:
    """October 2026, of a seller in one country to a buyer in another."""
    selling = party(seller) if isinstance(seller, str) else seller
    made = Head(
        number="2026/0001",
        issue_date=date(2026, 11, 1),
        due_date=date(2026, 11, 15),
        period_first=date(2026, 10, 1),
        period_last=date(2026, 10, 31),
        seller=selling,
        buyer=party(buyer, "Käufer") if isinstance(buyer, str) else buyer,
        statement_sha256=bytes(range(32)),
        account=BankAccount(iban=IBANS[selling.address.country], bic="HABALT22", holder=selling.name),
        reference="RF18539007547034",
    )
    return dataclasses.replace(made, **changes)


def line(model: str = "Qwen/Qwen3-32B", prompt: int = 12_345_678, cached: int = 1_000_000, output: int = 7_654_321,
         price_upm: int = 200_000) -> StatementLine:  # fmt: skip
    """A statement's line; its amount is exact."""
    amount = (prompt - cached) * price_upm + cached * 50_000 + output * 600_000
    return StatementLine(
        model=model,
        input_upm=price_upm,
        cached_input_upm=50_000,
        output_upm=600_000,
        receipts=3,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        amount_pico=amount,
    )


EARLIER = (
    PrecedingInvoice(number="2026/0000", issue_date=date(2026, 10, 1)),
    PrecedingInvoice(number="2025/0917", issue_date=date(2026, 9, 1)),
)
